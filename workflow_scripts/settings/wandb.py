"""The section `wandb`: weights & Biases."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workflow_scripts.settings.section import Section, Text


class Wandb(Section):
    """Weights & Biases: one run per experiment. Changes no result, so none of it reruns a stage."""

    enabled: bool = Field(False, description="Log losses, throughput and energy.")
    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto",
        description="auto: WANDB_MODE where it is set, else online with a key (WANDB_API_KEY or `wandb login`), else offline.",
    )
    project: Text = Field("distillation-energy-benchmark", description="W&B project.")
    entity: str | None = Field(None, description="W&B team.")
    run_name: str | None = Field(None, description="Run name. Null: the experiment's name.")
    log_interval: int = Field(5, ge=1, description="Optimizer steps between log lines.")
