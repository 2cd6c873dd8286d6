"""Schema `experiment-summary/1`; `summary_schema.json` is generated from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr, computed_field, model_validator

from workflow_scripts.accounting.prediction import ForecastOutcome
from workflow_scripts.accounting.quality import Deployment, Evaluation, IntermediateEvaluations
from workflow_scripts.artefact import RANDOM_WEIGHTS
from workflow_scripts.energy.documents import Closed, Document, is_none
from workflow_scripts.energy.model import EnergyClass, StageRecord, known_energy
from workflow_scripts.energy.uncertainty import KWH, Energy
from workflow_scripts.pipelines import plain_name, teacher_of, training_of
from workflow_scripts.progress import TOKEN_TYPES

ROLES = ("prerun", "data", "teacher", "student", "evaluation")  # of the stages in a summary
CACHE = "logit_caching"


def sum_of(values: list[float | None]) -> float | None:
    """Sum; None as soon as one member is unknown or there is none."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def unlike(values: Mapping[str, str]) -> str:
    """The values by name in words where they are not all alike, else nothing."""
    return "; ".join(f"{name}: {value}" for name, value in values.items()) if len(set(values.values())) > 1 else ""


def hardware_of(records: Iterable[StageRecord]) -> str:
    """CPUs, their number and memory, GPUs, their power limit and driver, that stages ran on."""
    return ", ".join(sorted({words for r in records for words in (r.cpu_words, *(device.words for device in r.devices))}))


class RoleEnergy(Closed):
    """Energy of all stages of one role; null when one of them has no figure, or there is none.

    Class (the worst) and boundaries are those of the stages that have a figure; class null where there is no stage.
    """

    joules: float | None
    kwh: float | None
    uncertainty_kwh: float | None
    stages: int
    useful_j: float | None = None
    wasted_j: float | None = None
    energy_class: EnergyClass | None = Field(None, alias="class")
    boundary: list[str] = Field(default_factory=list)


class SummaryEnergy(Closed):
    """How the total was obtained: worst class, boundaries, whether every stage has a figure, its uncertainty."""

    energy_class: EnergyClass = Field(alias="class")
    boundary: list[str]
    complete: bool
    uncertainty_j: float | None
    uncertainty_pct: float | None


class Reuse(Closed):
    """Which experiments used a stage's artefact. Of imported experiments only."""

    experiments: int
    names: list[str]


class Lineage(Closed):
    """What the starting policy has cost before; not in this experiment's total."""

    policy: str
    student_kwh: float | None
    teacher_kwh: float | None
    total_energy_kwh: float | None


class SummaryStage(StageRecord):
    """A stage of a summary. With `lineage` it belongs to the experiment of that name, whose model this one starts from."""

    lineage: str | None = Field(None, exclude_if=is_none)
    shared_by: list[str] | None = Field(None, exclude_if=is_none)  # of imported experiments, and in older summaries

    @property
    def kept(self) -> float | None:
        """Joules whose work survived: what lost attempts have spent is on the bill, and no cost of a method."""
        return None if self.spent is None else self.spent.value - (self.wasted_j or 0.0)

    @property
    def share_kept(self) -> float:
        """The part of its joules whose work survived, 1 where that is not known."""
        return (self.kept or 0.0) / self.spent.value if self.spent is not None and self.spent.value else 1.0


@dataclass(frozen=True)
class Problem:
    """Why an experiment has no total: a stage that is missing, or whose figure is no energy."""

    stage: str
    text: str


class ExperimentSummary(Document):
    """All stages of one experiment added up. Energies in J and kWh, durations in s.

    Everything that follows from the stages is computed from them. Stages of a starting policy (`lineage`) are in no total.
    """

    schema_: Literal["experiment-summary/1"] = Field("experiment-summary/1", alias="schema")
    experiment_id: str = ""
    experiment_name: str
    pipeline: str
    description: str = ""
    reuse: dict[str, Reuse] = Field(default_factory=dict, exclude_if=lambda value: not value)
    lineage: Lineage | None = None
    forecast: ForecastOutcome | None = None
    quality: Annotated[Evaluation, BeforeValidator(lambda value: value or {})] = Field(default_factory=Evaluation)
    references: dict[str, Evaluation] = Field(default_factory=dict)
    comparable: dict[str, Any] = Field(default_factory=dict)
    config_fingerprint: str = ""
    seedless_fingerprint: str | None = None
    evaluations_on_the_way: IntermediateEvaluations | None = None
    deployment: dict[str, Deployment] = Field(default_factory=dict)
    stages: dict[str, SummaryStage] = Field(min_length=1)

    # Sums over the stages that are in the total; the trainings' tokens; energies of the stages that have a figure.
    start_time: float = 0.0
    end_time: float = 0.0
    total_duration_seconds: float = 0.0
    total_tokens_processed: int | None = None
    tokens_unit: str | None = None
    tokens: dict[str, int | None] = Field(default_factory=dict)
    throughput: dict[str, float | None] = Field(default_factory=dict)
    total_energy_joules: float | None = None  # null when one stage has no figure
    total_gpu_energy_joules: float | None = None
    total_cpu_energy_joules: float | None = None
    useful_j: float | None = None
    wasted_j: float | None = None
    carbon_grams: float | None = None  # null when those of one stage are not known
    _path: Path = PrivateAttr(Path())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a summary; it remembers where. Raises ArtefactError."""
        summary = super().read(path)
        summary._path = path
        return summary

    @property
    def path(self) -> Path:
        """Where the summary was read; traces are found from there."""
        return self._path

    @property
    def own(self) -> dict[str, SummaryStage]:
        """Stages that are in the total."""
        return {name: stage for name, stage in self.stages.items() if stage.lineage is None}

    @property
    def in_order(self) -> dict[str, SummaryStage]:
        """Stages that are in the total by role, in the order of the work, and by start."""
        return dict(sorted(self.own.items(), key=lambda item: (ROLES.index(item[1].role), item[1].start_time, item[0])))

    def of(self, *roles: str) -> list[SummaryStage]:
        """Stages of some roles that are in the total."""
        return [stage for stage in self.own.values() if stage.role in roles]

    @property
    def training(self) -> SummaryStage | None:
        """The experiment's own training."""
        return self.own.get(training_of(self.pipeline))

    @property
    def trainings(self) -> list[SummaryStage]:
        """The trainings of all rounds."""
        return [stage for name, stage in self.own.items() if plain_name(name) == training_of(self.pipeline)]

    def spent(self, *roles: str) -> Energy | None:
        """Energy of the stages of some roles, or of all; None when there is none or one of them has no figure."""
        stages = self.of(*roles) if roles else list(self.own.values())
        return known_energy(stages) if stages and all(stage.spent is not None for stage in stages) else None

    def kept(self, *roles: str) -> Energy | None:
        """As `spent`, of what survived."""
        stages = self.of(*roles) if roles else list(self.own.values())
        spent, kept = self.spent(*roles), sum_of([stage.kept for stage in stages])
        return spent.scaled(kept / spent.value) if spent is not None and kept is not None and spent.value > 0 else spent

    @property
    def before(self) -> Energy | None:
        """What training the starting policy has cost, 0 without one; None when it is not known.

        The errors are those of the training records kept with it; what else is in it errs in the same proportion.
        """
        if self.lineage is None:
            return Energy(0.0)
        if self.lineage.total_energy_kwh is None:
            return None
        trainings = known_energy(stage for stage in self.stages.values() if stage.lineage is not None)
        return Energy(self.lineage.total_energy_kwh * KWH).with_errors_of(trainings)

    @property
    def used_share(self) -> float:
        """The share of its logit cache that the training has used, by examples; 1 where not known, or of other teachers.

        What filters have dropped from a teacher's texts had to be made; a row of a cache that no step has read had not.
        """
        rounds = any(name != plain_name(name) for name in self.own)  # whose scores are of several trainings
        cache, training = None if rounds else self.own.get(CACHE), self.training
        made, used = cache.work.examples if cache else None, training.work.examples if training else None
        return min(1.0, used / made) if made and used else 1.0

    @property
    def training_energy(self) -> Energy | None:
        """What survived of the student's stages, without the evaluations inside the trainings where their joules are known."""
        student, evaluating = self.kept("student"), sum(self.evaluating_kwh) * KWH
        if student is None or not evaluating or student.value <= 0:
            return student
        return student.scaled(max(0.0, 1 - evaluating / student.value))

    @property
    def earlier(self) -> list[SummaryStage]:
        """The student's stages before its last training: what it wrote in rounds, and the trainings on that."""
        return [stage for stage in self.of("student") if stage is not self.training]

    @property
    def evaluating_kwh(self) -> list[float]:
        """Energy [kWh] of the evaluations inside each training; none of one where it is not known."""
        found = self.evaluations_on_the_way
        rounds = [(p.joules or 0.0) * stage.share_kept for stage in self.earlier if (p := stage.phases.get("evaluate"))]
        return [joules / KWH for joules in (found.joules if found else None, *rounds) if joules]

    @property
    def method_energy(self) -> Energy | None:
        """What the method costs: teacher (the share that was used), training, starting policy; None when one is not known.

        Prerun, data and evaluation are no part of it, nor are the evaluations inside the training and what lost attempts spent.
        """
        student, before = self.training_energy, self.before
        teacher = self.kept("teacher") if self.of("teacher") else Energy(0.0)
        if teacher is None or student is None or before is None or self.problems:
            return None
        return student + before + teacher.scaled(self.used_share)

    @property
    def unshared(self) -> dict[str, SummaryStage]:
        """Teacher stages of later rounds: made for a policy that this experiment alone has, so that nobody can reuse them."""
        return {name: s for name, s in self.own.items() if s.role == "teacher" and name != plain_name(name)}

    @property
    def problems(self) -> list[Problem]:
        """Why the experiment has no total."""
        wanted = (*teacher_of(self.pipeline), training_of(self.pipeline))
        missing = [Problem(n, f"stage {n} is missing, so it has no total") for n in wanted if n not in self.own]
        odd = {n: joules for n, r in self.stages.items() if r.spent is None and (joules := r.total_energy_joules) is not None}
        return missing + [Problem(n, f"stage {n}: total_energy_joules = {j!r} is no energy") for n, j in odd.items()]

    @property
    def partial(self) -> list[str]:
        """Why the total is a lower bound."""
        unfinished = ((name, r.status) for name, r in self.stages.items() if r.status != "complete")
        return [f"stage {name} is {status}: its energy is a lower bound" for name, status in unfinished]

    @property
    def random_weights(self) -> bool:
        """Whether the models are random, so that quality means nothing."""
        return any(RANDOM_WEIGHTS in stage.warnings for stage in self.own.values())

    @property
    def hardware(self) -> str:
        """What the stages ran on, those of a starting policy included."""
        return hardware_of(self.stages.values())

    @model_validator(mode="after")
    def _add_up(self) -> Self:
        own, training = self.own.values(), self.training
        known = [stage for stage in own if stage.spent is not None]
        self.start_time = min((stage.start_time for stage in own), default=0.0)
        self.end_time = max((stage.end_time for stage in own), default=0.0)
        self.total_duration_seconds = sum(stage.duration_seconds for stage in own)
        tokens = [stage.tokens_processed for stage in self.trainings]
        self.total_tokens_processed = sum(map(int, tokens)) if tokens and None not in tokens else None  # type: ignore[arg-type]
        self.tokens_unit = training.tokens_unit if training else None
        counted = {kind: [n for stage in own if (n := getattr(stage.work, kind)) is not None] for kind in TOKEN_TYPES}
        self.tokens = {kind: sum(counts) if counts else None for kind, counts in counted.items()}
        self.throughput = {name: stage.tokens_per_second for name, stage in self.own.items()}
        self.total_energy_joules = spent.value if (spent := self.spent()) else None
        self.total_gpu_energy_joules = sum_of([stage.gpu_energy_joules for stage in known])
        self.total_cpu_energy_joules = sum_of([stage.cpu_energy_joules for stage in known])
        self.useful_j = sum_of([stage.useful_j for stage in known])
        self.wasted_j = sum_of([stage.wasted_j for stage in known])
        self.carbon_grams = sum_of([stage.carbon.grams for stage in own])
        return self

    @computed_field
    @property
    def total_energy_kwh(self) -> float | None:
        """Energy of all stages [kWh]; null when one has no figure."""
        return None if self.total_energy_joules is None else self.total_energy_joules / KWH

    @computed_field
    @property
    def joules_per_token(self) -> float | None:
        """Of the training."""
        return self.training.joules_per_token if self.training else None

    @property
    def _tokens_of_the_end(self) -> int | None:
        """The training's tokens; None where they are of an earlier instant than its energy (imported records)."""
        trained = self.training
        if trained is None or not trained.tokens_processed or trained.total_energy_joules is None:
            return self.total_tokens_processed
        then = (trained.joules_per_token or 0.0) * trained.tokens_processed
        late = abs(trained.total_energy_joules - then) > 1e-6 * trained.total_energy_joules
        return None if late else self.total_tokens_processed

    @computed_field
    @property
    def overall_joules_per_token(self) -> float | None:
        """Energy of all stages per token of the trainings."""
        joules, tokens = self.total_energy_joules, self._tokens_of_the_end
        return joules / tokens if joules is not None and tokens else None

    @computed_field
    @property
    def overall_tokens_per_second(self) -> float | None:
        """Tokens of the trainings per second of all stages."""
        tokens, seconds = self._tokens_of_the_end, self.total_duration_seconds
        return tokens / seconds if tokens and seconds else None

    @computed_field
    @property
    def energy(self) -> SummaryEnergy:
        """How the total was obtained; class and boundary are those of the stages that have a figure."""
        spent, known = self.spent(), known_energy(self.own.values())
        return SummaryEnergy(
            energy_class=known.energy_class or "unavailable",
            boundary=sorted(known.boundaries),
            complete=spent is not None,
            uncertainty_j=spent.half_width if spent else None,
            uncertainty_pct=spent.uncertainty_pct if spent else None,
        )

    @computed_field
    @property
    def roles(self) -> dict[str, RoleEnergy]:
        """Energy by role."""
        return {role: self._role(role) for role in ROLES}

    def _role(self, role: str) -> RoleEnergy:
        members, spent = self.of(role), self.spent(role)
        known = known_energy(members)
        return RoleEnergy(
            joules=spent.value if spent else None,
            kwh=spent.kwh if spent else None,
            uncertainty_kwh=spent.uncertainty_kwh if spent else None,
            stages=len(members),
            useful_j=sum_of([stage.useful_j for stage in members]),
            wasted_j=sum_of([stage.wasted_j for stage in members]),
            energy_class=known.energy_class or "unavailable" if members else None,
            boundary=sorted(known.boundaries),
        )

    @computed_field
    @property
    def warnings(self) -> list[str]:
        """What the stages warn of, and what is odd about their sum."""
        found = [RANDOM_WEIGHTS] if self.random_weights else []
        found += [f"{name}: {text}" for name, r in self.own.items() for text in r.warnings if text != RANDOM_WEIGHTS]
        found += [f"{name}: no energy figure, so there is no total" for name, r in sorted(self.own.items()) if r.spent is None]
        if self.unshared:
            alone = ", ".join(self.unshared)
            found.append(f"{alone}: made for this experiment's own policies: no other experiment can reuse them, only round 1")
        unfinished = {name: stage.status for name, stage in self.own.items() if stage.status != "complete"}
        found += [f"{name}: its record is {status}: its energy is a lower bound" for name, status in unfinished.items()]
        gpus = {name: ", ".join(sorted({d.name for d in r.devices if d.name})) for name, r in self.own.items()}
        for what, names in (("GPUs", gpus), ("CPUs", {name: r.provenance.cpu for name, r in self.own.items()})):
            if listed := unlike({name: hardware for name, hardware in names.items() if hardware}):
                found.append(f"{what} differ between the stages: {listed}")
        boundaries = self.energy.boundary
        return found + ([f"stages have different boundaries: {', '.join(boundaries)}"] if len(boundaries) > 1 else [])
