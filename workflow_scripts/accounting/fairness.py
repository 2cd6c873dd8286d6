"""What must agree for a fair comparison, and what is refused where it does not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from workflow_scripts.accounting.groups import Group, group
from workflow_scripts.accounting.model import ExperimentSummary, unlike
from workflow_scripts.accounting.quality import LOWER_IS_BETTER
from workflow_scripts.settings.evaluation import FOLLOWED

AGREEMENT = ("kl_to_teacher", "top1_agreement")


@dataclass(frozen=True)
class Difference:
    """A property that does not agree, and its values by experiment (or runs of one) in a sentence."""

    what: str
    text: str


def incomplete(summaries: Iterable[ExperimentSummary]) -> list[str]:
    """Experiments without a total, and those whose training is charged with the evaluations inside it."""
    found = []
    for summary in summaries:
        name, on_the_way = summary.experiment_name, summary.evaluations_on_the_way
        if not summary.energy.complete:
            found.append(f"{name}: a stage has no energy figure, so it has no total")
        if on_the_way and on_the_way.count and on_the_way.joules is None:
            found.append(
                f"{name}: the joules of {on_the_way.count} evaluations inside its training are not known "
                f"({on_the_way.reason}): they are in what the method costs"
            )
    return found


def differences(summaries: Sequence[ExperimentSummary]) -> list[Difference]:
    """What must agree for a fair comparison and does not."""
    properties = {each.name: _properties(each) for each in group(summaries)}
    found = []
    for what in dict.fromkeys(what for own in properties.values() for what in own):
        if listed := unlike({name: own[what] for name, own in properties.items() if what in own}):
            found.append(Difference(what, f"{what} differs: {listed}"))
    return found


def _properties(each: Group) -> dict[str, str]:
    """Property -> value, over the runs of a group; what is not known is left out."""
    found: dict[str, list[str]] = {}
    for summary in each.runs:
        training = summary.training
        own = {
            "hardware": summary.hardware,
            "boundary": "; ".join(summary.energy.boundary),
            "energy class": summary.energy.energy_class,
            "stages": "+".join(role for role, entry in summary.roles.items() if entry.stages and role != "teacher"),
            "evaluation split": (summary.quality.split_sha256 or "")[:12],
            "teacher": summary.quality.teacher,
            "end of the training": training.metrics.ended_by if training else None,
            **summary.comparable,
        }
        for what, value in own.items():
            if value not in (None, ""):
                found.setdefault(what, []).append(str(value))
    return {what: ", ".join(sorted(set(values))) for what, values in found.items()}


def qualities(summaries: Iterable[ExperimentSummary]) -> list[str]:
    """Every quality that one of the experiments can be judged by."""
    return [*LOWER_IS_BETTER, *sorted({name for s in summaries for name in s.quality.metrics})]


def lower_is_better(summaries: Iterable[ExperimentSummary], quality: str) -> bool:
    """Direction of a quality; a task says its own."""
    entries = [entry for s in summaries if (entry := s.quality.metrics.get(quality)) is not None]
    return LOWER_IS_BETTER.get(quality, any(entry.higher_is_better is False for entry in entries))


def quality_refusal(summaries: Iterable[ExperimentSummary], quality: str) -> str | None:
    """Why the qualities of these experiments are no numbers of one scale, or None."""
    judged = {s.experiment_name: s.quality for s in summaries if s.quality.quality(quality) is not None}
    checks: dict[str, dict[str, str]] = {}
    if "/" in quality:
        checks = {f"{quality} was asked differently": {name: q.conditions(quality) for name, q in judged.items()}}
    if "/" not in quality or quality == FOLLOWED:  # of the held-out rows
        checks["the evaluation split differs"] = {name: (q.split_sha256 or "unknown")[:12] for name, q in judged.items()}
    if "/" not in quality and quality != "bits_per_byte":
        known = {name: q.tokenizer_sha256[:12] for name, q in judged.items() if q.tokenizer_sha256}
        checks[f"{quality} counts tokens of different vocabularies, bits_per_byte does not"] = known
    if quality in AGREEMENT:
        checks[f"{quality} is to different teachers"] = {name: str(q.teacher) for name, q in judged.items()}
    for complaint, values in checks.items():
        if listed := unlike(values):
            return f"quality is not compared: {complaint} ({listed})"
    return None


def boundary_difference(groups: Iterable[Group], *roles: str) -> str | None:
    """How the boundaries of the stages of some roles differ between groups, or None: such energies are not subtracted."""
    found: dict[str, set[str]] = {}
    for each in groups:
        for record in (r for s in each.runs for r in s.stages.values() if r.role in roles and r.spent is not None):
            found.setdefault(record.boundary, set()).add(each.name)
    listed = "; ".join(f"{boundary}: {', '.join(sorted(names))}" for boundary, names in sorted(found.items()))
    return f"boundaries differ ({listed})" if len(found) > 1 else None
