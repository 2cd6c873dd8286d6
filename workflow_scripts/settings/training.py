"""The section `training`: one training block for all pipelines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from workflow_scripts.settings.section import Section

Dtype = Literal["auto", "float32", "bfloat16"]


class Lora(Section):
    """Low-rank adapters (Hu et al. 2021), by peft: what is trained in place of the weights, and merged into them at the end."""

    rank: int = Field(16, ge=1, description="Rank of an adapter.")
    alpha: int = Field(32, ge=1, description="What an adapter adds is multiplied by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of an adapter's inputs that a step leaves out.")
    target_modules: list[str] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1,
        description="Linear layers of the decoder that get one, by the last part of their names.",
    )


class Training(Section):
    """One training block for all pipelines, so that they stay comparable."""

    token_budget: int = Field(ge=1, description="Training ends at this many loss tokens (dpo: of chosen + rejected).")
    max_epochs: int | None = Field(None, ge=1, description="Passes over the data at most. Null: the budget decides.")
    batch_size: int = Field(
        8,
        ge=1,
        description="Examples (dpo: pairs) per forward pass, of all processes together, so that it means the same for any.",
    )
    gradient_accumulation_steps: int = Field(1, ge=1, description="Forward passes per optimizer step.")
    batch_tokens: int | None = Field(
        None,
        ge=1,
        description="Loss tokens per optimizer step on average (dpo: of chosen + rejected), the same for all pipelines: the "
        "rows of a step follow from the mean of the training's rows, batch_size is the most rows of a forward pass, and "
        "gradient_accumulation_steps is not used. Null: a step is batch_size x gradient_accumulation_steps rows.",
    )
    energy_budget_kwh: float | None = Field(
        None,
        gt=0,
        description="The training also ends when its stage has used this much [kWh], start-up, earlier attempts and "
        "intermediate evaluations included; then the model is saved. The schedule stays that of the token budget.",
    )
    packing: bool = Field(
        True,
        description="The rows of a forward pass in one sequence without padding, each attending to itself only (kd, sft, "
        "opd, baseline; dpo pads, as TRL has no packing for it). The loss is the same.",
    )
    optimizer: Literal["adamw", "adafactor", "adamw_8bit"] = Field(
        "adamw", description="Optimizer; adamw_8bit needs the package bitsandbytes."
    )
    learning_rate: float = Field(gt=0, lt=1, description="Peak learning rate.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient norm is clipped to this.")
    num_warmup_steps: int = Field(0, ge=0, description="Optimizer steps of linear warm-up.")
    schedule_type: Literal["cosine", "linear", "constant"] = Field("cosine", description="Learning rate schedule.")
    dtype: Dtype = Field(
        "auto",
        description="Compute type of training and evaluation; auto: bfloat16 on GPUs that have it and on CPUs with AMX, else "
        "float32.",
    )
    lora: Lora | None = Field(
        None,
        description="Train adapters only; the model that is written has them merged, `adapter/` in its folder has them alone.",
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations to save memory.")
    compile: bool = Field(
        False, description="Compile the decoder layers (torch.compile); what that costs is on the training's bill."
    )
    num_processes: int = Field(1, ge=1, le=64, description="Processes (GPUs) per node; torchrun starts them.")
    num_nodes: int = Field(1, ge=1, le=64, description="Nodes; more than one needs a Slurm job of as many.")
    fsdp: bool = Field(False, description="Shard parameters, gradients and optimizer over the processes (full shard).")
    save_steps: int = Field(50, ge=1, description="Optimizer steps between checkpoints.")
    keep_checkpoints: bool = Field(
        True,
        description="Keep the last checkpoints, with the optimizer's state, when the model is written; false: they go, and a "
        "training whose model is lost begins anew. One of at most `save_steps` steps then writes none, unless it is "
        "stopped.",
    )
    eval_steps: int | None = Field(
        None, ge=1, description="Optimizer steps between evaluations on the way. Null: none, or by eval_joules."
    )
    eval_joules: float | None = Field(
        None,
        gt=0,
        description="Joules of the training itself between evaluations on the way, instead of eval_steps: start-up, saves, the "
        "evaluations and attempts before this one are not counted, of several nodes the first one's are.",
    )

    @property
    def evaluated(self) -> str:
        """How often it is evaluated on the way, in words; empty for never."""
        if self.eval_joules is not None:
            return f"every {self.eval_joules:g} J"
        return f"every {self.eval_steps} steps" if self.eval_steps else ""

    @model_validator(mode="after")
    def _batch_divides(self) -> Training:
        world = self.num_processes * self.num_nodes
        if self.batch_size % world:
            raise ValueError(
                f"batch_size = {self.batch_size} is shared by num_processes x num_nodes = {world} processes: choose a multiple"
            )
        if self.fsdp and world == 1:
            raise ValueError("fsdp = true shards over several processes: raise num_processes or num_nodes")
        if self.eval_steps is not None and self.eval_joules is not None:
            raise ValueError(
                f"eval_steps = {self.eval_steps} and eval_joules = {self.eval_joules:g} exclude each other: set one to null"
            )
        if self.fsdp and self.lora:
            raise ValueError("lora and fsdp = true exclude each other: a shard cannot be merged; adapters need no shards")
        return self
