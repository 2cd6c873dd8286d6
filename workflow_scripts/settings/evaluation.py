"""The section `evaluation`: how trained models are judged."""

from __future__ import annotations

from pydantic import Field, model_validator

from workflow_scripts.settings.section import Section, Text

FOLLOWED = "instructions/followed"  # the share of instructions that answers follow, as the name of a quality


class Evaluation(Section):
    """Held-out evaluation, the same for every model of a comparison."""

    batch_size: int = Field(8, ge=1, description="Rows per forward pass.")
    generation_prompts: int = Field(8, ge=1, description="Prompts answered to measure the deployed cost.")
    max_new_tokens: int = Field(32, ge=1, description="Tokens generated per prompt.")
    generation_seconds: float = Field(
        2.0,
        ge=0,
        description="The prompts are answered again until this time is over: a shorter one is coarse for the meter [s].",
    )
    instruction_prompts: int = Field(
        48,
        ge=0,
        description="Held-out questions with an instruction that a program can check (no comma, three bullet points, …): the "
        "quality instructions/followed, which no pipeline trains on. 0: none.",
    )
    instruction_new_tokens: int = Field(128, ge=1, description="Tokens generated per instruction.")
    lm_eval_tasks: list[Text] = Field(
        [], description="Tasks of the lm-evaluation-harness by name; needs envs/requirements-lm-eval.txt."
    )
    lm_eval_include_path: Text | None = Field(
        None, description="Folder with task files of your own (YAML, and the data that they read), for machines without a hub."
    )
    lm_eval_limit: int | None = Field(None, ge=1, description="Examples per task at most. Null: all.")
    lm_eval_batch_size: int = Field(8, ge=1, description="Requests per forward pass of the tasks.")
    lm_eval_num_fewshot: int | None = Field(None, ge=0, description="Solved examples in the prompt. Null: as the task says.")
    lm_eval_apply_chat_template: bool = Field(False, description="Put the tasks' prompts into the model's chat template.")

    @model_validator(mode="after")
    def _folder_needs_tasks(self) -> Evaluation:
        if self.lm_eval_include_path is not None and not self.lm_eval_tasks:
            raise ValueError(
                f"lm_eval_include_path = {self.lm_eval_include_path!r}, but lm_eval_tasks is empty: name its tasks"
            )
        return self
