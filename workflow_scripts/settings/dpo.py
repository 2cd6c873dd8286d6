"""The section `dpo`: preference pairs and the training on them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from workflow_scripts.settings.generation import Generation
from workflow_scripts.settings.section import Section

ScoringMethod = Literal["likelihood_mean", "likelihood", "judge"]


class JudgeLabeling(Section):
    """How the teacher's samples are ranked: by their likelihood under itself, or by its judgement or that of another model."""

    scoring_method: ScoringMethod = Field(
        "likelihood_mean",
        description="The teacher's log-likelihood of its own sample per token, or its sum (which favours short answers). "
        "judge: a model is asked which of two answers is better, in both orders; the score is the number of those beaten.",
    )
    judge_model: str | None = Field(
        None, description="The judge, as in model.teacher; it may have a vocabulary of its own. null: the teacher itself."
    )
    min_margin: float = Field(
        0.0, ge=0, description="Pairs whose scores differ by less are dropped [nats; judge: answers beaten]. A tie always is."
    )

    @model_validator(mode="after")
    def _judge_is_asked(self) -> JudgeLabeling:
        if self.judge_model is not None and self.scoring_method != "judge":
            raise ValueError(
                f"judge_model = {self.judge_model!r}, but scoring_method = {self.scoring_method!r} asks no judge: set it to "
                "'judge', or judge_model to null"
            )
        return self

    def other_judge(self) -> str | None:
        """The model that is asked, where it is not the teacher."""
        return self.judge_model


class Dpo(Section):
    """Direct preference optimisation on teacher-ranked pairs."""

    beta: float = Field(0.1, gt=0, description="Strength of the pull to the reference policy.")
    loss_type: Literal["sigmoid", "sigmoid_norm"] = Field("sigmoid", description="TRL's name of the DPO loss.")
    samples_per_prompt: int = Field(2, ge=2, description="Samples ranked per prompt.")
    train_prompts: int = Field(ge=1, description="Prompts of the training split.")
    evaluation_prompts: int = Field(ge=1, description="Prompts of the held-out split.")
    keep_truncated: bool = Field(False, description="Rank answers that hit max_new_tokens without an end token, too.")
    generation: Generation
    judge_labeling: JudgeLabeling = JudgeLabeling()
