"""Jobs of the plan, what the rules need of one experiment, and in what two runs are alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from workflow_scripts.pipelines import TEACHER_SEEDS, Pipeline
from workflow_scripts.plan.names import digest
from workflow_scripts.plan.slices import Content, canonical, drop, without_locations
from workflow_scripts.settings import Settings


@dataclass(frozen=True)
class Job:
    """One run of a rule: its slice of the settings and its input manifests by argument name."""

    settings: Content
    inputs: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)  # what the settings name on disk: its content decides, too

    @property
    def deciding(self) -> Content:
        """The settings that decide the result."""
        return without_locations(self.settings)

    @property
    def identity(self) -> str:
        """The same as text."""
        return canonical(self.deciding)


@dataclass(frozen=True)
class TeacherArtefact:
    """What a teacher stage makes: by the jobs of its parts, in the folder `raw`, and by their merge."""

    raw: str
    parts: Job
    merge: Job
    adopted: bool  # what is there already is used: no parts


@dataclass(frozen=True)
class ExperimentPlan:
    """Everything the rules need of one experiment."""

    settings: Settings
    pipeline: Pipeline
    training: Job
    evaluation: Job
    shared: dict[str, str]  # stage name in the summary -> record file outside the experiment
    references: dict[str, str]  # student | teacher -> evaluation.json of the untrained model
    final: str  # manifest of the trained model
    check: list[str]  # proof that teacher and student share the vocabulary, where they do
    method: tuple[str, ...]  # what its result depends on beside seeds and the starting policy


def seedless(job: Job, settings: Settings) -> str:
    """The deciding settings of a job without what differs between the runs of one method."""
    content = job.deciding
    of_teacher = TEACHER_SEEDS if settings.experiment.teacher_seeds else ()
    for key in ("experiment.seed", "experiment.replicate", *of_teacher):
        drop(content, key)
    return canonical(content)


def turns(experiments: Mapping[str, ExperimentPlan], methods: Mapping[str, str]) -> dict[str, int]:
    """Places of the runs from 0: blocks of equal seeds, the methods in each shuffled by a hash, so a new one moves none."""
    seeds = {name: plan.settings.experiment.seed for name, plan in experiments.items()}
    order = sorted(seeds, key=lambda name: (seeds[name], digest(str(seeds[name]), methods[name])))
    return {name: turn for turn, name in enumerate(order)}


def parts_of(record: Path) -> int | None:
    """Number of parts in a merged record; None where it is damaged or says none."""
    try:
        parts: int | None = json.loads(record.read_text(encoding="utf-8")).get("parts")
    except json.JSONDecodeError:
        return None
    return parts
