"""How good a model is and what serving it costs: what its evaluation wrote, and the evaluations during its training."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from workflow_scripts.energy.documents import Closed, Open

LOWER_IS_BETTER = {"cross_entropy": True, "bits_per_byte": True, "kl_to_teacher": True, "top1_agreement": False}


class EvaluationPoint(Closed):
    """Held-out loss after `step` optimizer steps, and the joules of the training alone until then.

    `work_joules` are those of its work phase; null where the record does not tell it apart.
    """

    step: int
    eval_loss: float | None
    training_joules: float | None
    work_joules: float | None = None


class IntermediateEvaluations(Closed):
    """Evaluations inside the training: their cost, null with a reason, is in its record, but not in the method's."""

    count: int
    seconds: float
    joules: float | None
    reason: str | None
    points: list[EvaluationPoint]


class Preference(Open):
    """Implicit rewards on held-out pairs."""

    mean_margin: float | None = None
    accuracy: float | None = None


class Generation(Open):
    """Text generated in an evaluation; `start_s` in seconds of the evaluation's attempt."""

    generated_tokens: int | None = None
    seconds: float | None = None
    start_s: float | None = None
    tokens_per_second: float | None = None
    reason: str | None = None


class TaskMetric(Open):
    """A metric of an lm-eval task."""

    value: float | None = None
    higher_is_better: bool | None = None
    examples: int | None = None
    shots: int | None = None
    version: float | str | None = None


class Tasks(Open):
    """Metrics of lm-eval tasks by `<task>/<metric>`."""

    chat_template: Any = None
    metrics: dict[str, TaskMetric] = Field(default_factory=dict)


class RowSums(Closed):
    """Sums over the loss tokens of every held-out row, in the split's order; null without a teacher of this vocabulary.

    A quality is their sum per token.
    """

    tokens: list[int]
    cross_entropy: list[float]
    kl_to_teacher: list[float] | None
    top1_agreement: list[int] | None
    instructions: list[int] | None = None  # one of each: whether it was followed


class Evaluation(Open):
    """evaluation.json: how good a model is on held-out text. A quality is one of its fields, or a task's metric by name."""

    model: str | None = None
    teacher: str | None = None
    split_sha256: str | None = None
    tokenizer_sha256: str | None = None
    cross_entropy: float | None = None
    bits_per_byte: float | None = None
    perplexity: float | None = None
    kl_to_teacher: float | None = None
    top1_agreement: float | None = None
    rows: RowSums | None = None
    preference: Preference | None = None
    generation: Generation | None = None
    tasks: Tasks | None = None

    @property
    def metrics(self) -> dict[str, TaskMetric]:
        """Metrics of tasks by name."""
        return self.tasks.metrics if self.tasks else {}

    def quality(self, name: str) -> float | None:
        """A quality; None where the evaluation has none."""
        if "/" not in name:
            value: float | None = getattr(self, name, None)
            return value
        return self.metrics[name].value if name in self.metrics else None

    def conditions(self, name: str) -> str:
        """What values of a task's metric are comparable under, in words."""
        entry = self.metrics.get(name, TaskMetric())
        said = f"examples {entry.examples}, shots {entry.shots}, version {entry.version}"
        return f"{said}, chat template {self.tasks.chat_template if self.tasks else None}"


class DeployedComponent(Closed):
    """A component's part of the joules per token, with its instrument and the host or GPUs that it belongs to."""

    component: str
    joules_per_token: float
    instrument: str
    whose: str
    uncertainty_pct: float | None


class Deployment(Closed):
    """What serving a model costs: joules per generated token in its evaluation, by which method, on which hardware."""

    joules_per_token: float | None = None
    tokens: int | None = None
    seconds: float | None = None
    watts: float | None = None
    boundary: list[str] = Field(default_factory=list)
    hardware: str | None = None
    components: list[DeployedComponent] = Field(default_factory=list)
    method: Literal["trace", "mean power of the evaluation"] | None = None
    reason: str | None = None
