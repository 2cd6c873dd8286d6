"""The whole configuration of one experiment: every section, and what holds between them.

The reference in ``config/README.md`` and the JSON schema ``config/schema.json`` are generated from these models, so a key is
described once. Models are strict (a quoted number is not a number) and closed (an unknown key is refused).
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field, create_model, field_validator, model_validator

from workflow_scripts.pipelines import PIPELINES, STAGES, splits
from workflow_scripts.settings.comparison import Comparison as Comparison
from workflow_scripts.settings.data import Data as Data
from workflow_scripts.settings.distillation import Distillation as Distillation
from workflow_scripts.settings.distillation import needs_buckets
from workflow_scripts.settings.dpo import Dpo as Dpo
from workflow_scripts.settings.energy import Energy as Energy
from workflow_scripts.settings.energy import Uncertainty as Uncertainty
from workflow_scripts.settings.evaluation import Evaluation as Evaluation
from workflow_scripts.settings.experiment import Experiment as Experiment
from workflow_scripts.settings.generation import Generation as Generation
from workflow_scripts.settings.model import Model as Model
from workflow_scripts.settings.models import ModelSource
from workflow_scripts.settings.opd import Opd as Opd
from workflow_scripts.settings.output import Output as Output
from workflow_scripts.settings.prerun import Hardware as Hardware
from workflow_scripts.settings.prerun import Prerun as Prerun
from workflow_scripts.settings.runs import Sweep
from workflow_scripts.settings.section import Name, Section, Text
from workflow_scripts.settings.synthetic_data import Filtering as Filtering
from workflow_scripts.settings.synthetic_data import SyntheticData as SyntheticData
from workflow_scripts.settings.teacher import Teacher as Teacher
from workflow_scripts.settings.training import Lora as Lora
from workflow_scripts.settings.training import Training as Training
from workflow_scripts.settings.wandb import Wandb as Wandb


class _Scatter(Section):
    """Into how many parts (Slurm jobs) the teacher's work is split. Changes no result; holds when an artefact is made next."""


_PARTS: dict[str, Any] = {
    stage.name: (int, Field(1, ge=1, le=800, description=f"Parts of each {stage.folder}; at most its units of work."))
    for stage, _ in splits()
}
Scatter = create_model("Scatter", __base__=_Scatter, __doc__=_Scatter.__doc__, **_PARTS)
CAMPAIGN_SECTIONS = ("energy", "output", "comparison", "hardware", "prerun", "scatter", "sweep")


class Settings(Section):
    """The whole configuration of one experiment."""

    pipeline: Text = Field(
        description=f"{', '.join(list(PIPELINES)[:-1])} or {list(PIPELINES)[-1]}.", json_schema_extra={"enum": list(PIPELINES)}
    )
    experiment: Experiment = Experiment()
    model: Model
    models: dict[Name, ModelSource] = Field({}, description="Registry of models that a rule makes.")
    data: Data
    teacher: Teacher = Teacher()
    distillation: Distillation = Distillation()
    synthetic_data: SyntheticData
    dpo: Dpo
    dpo_preference_dataset_path: Text | None = Field(
        None, description="Folder of the preference dataset. Null: beside the manifest."
    )
    opd: Opd = Opd()
    training: Training
    evaluation: Evaluation = Evaluation()
    energy: Energy = Energy()
    wandb: Wandb = Wandb()
    hardware: Hardware = Hardware()
    scatter: Scatter = Scatter()
    sweep: Sweep | None = Field(
        None,
        description="Variants of experiments: values by key, by the experiment's name; one for each combination. `kd: "
        "{distillation.alpha: [0.3, 0.5]}` makes kd-alpha0_3 and kd-alpha0_5 of kd.",
    )
    prerun: Prerun = Prerun()
    output: Output = Output()
    comparison: Comparison

    @field_validator("pipeline")
    @classmethod
    def _pipeline_known(cls, name: str) -> str:
        if name not in PIPELINES:
            raise ValueError(f"is no pipeline: choose one of {', '.join(PIPELINES)}")
        return name

    @model_validator(mode="after")
    def _policy_only_where_read(self) -> Settings:
        if self.model.policy is not None and not PIPELINES[self.pipeline].from_policy:
            readers = ", ".join(pipeline.name for pipeline in PIPELINES.values() if pipeline.from_policy)
            raise ValueError(f"model.policy is read by pipeline {readers} only, not by {self.pipeline}")
        return self

    @model_validator(mode="after")
    def _own_tokenizer_only_for_text(self) -> Settings:
        if self.model.student_chat_template is not None and PIPELINES[self.pipeline].one_vocabulary:
            raise ValueError(
                f"model.student_chat_template gives the student a tokenizer of its own, but {self.pipeline} exchanges token "
                "ids with the teacher: choose a student with the teacher's tokenizer, or another pipeline"
            )
        return self

    @model_validator(mode="after")
    def _divergence_of_rounds(self) -> Settings:
        if PIPELINES[self.pipeline].in_rounds and self.opd.divergence != "forward_kl":
            needs_buckets(self.distillation, f"opd.divergence = {self.opd.divergence!r}")
        return self

    @model_validator(mode="after")
    def _no_more_parts_than_units(self) -> Settings:
        pipeline = PIPELINES[self.pipeline]
        for stage in (pipeline.teacher, "rollout" if pipeline.in_rounds else None):
            if stage is None or (split := STAGES[stage].split) is None:
                continue
            parts, units = getattr(self.scatter, stage), math.ceil(split.units(self))
            if parts > units:
                raise ValueError(
                    f"scatter.{stage} = {parts}, but the work has {units} unit(s) at most: lower it, or lower {split.sizes}"
                )
        return self
