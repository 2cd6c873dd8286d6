"""The deployed cost: joules per generated token of a model, from the generation at the end of its evaluation."""

from __future__ import annotations

from pathlib import Path

from workflow_scripts.accounting.model import DeployedComponent, Deployment, Evaluation, Generation
from workflow_scripts.accounting.traces import TraceError, energy_curve, joules_between
from workflow_scripts.energy.model import Component, StageRecord
from workflow_scripts.energy.uncertainty import instrument


def deployed_cost(evaluation: Evaluation, record: StageRecord | None, near: Path) -> Deployment:
    """Joules per generated token [J], mean power [W] and how they were obtained; null with a `reason`.

    The energy of the generation's seconds comes from the meter's trace; where that is gone, or does not say when they were,
    from the mean power of the whole evaluation, which loading the model lowers or raises (`method` says which).
    `components` splits the figure by component, in the proportion of the stage's record, with each one's instrument.
    """
    generation = evaluation.generation or Generation()
    tokens, seconds = generation.generated_tokens, generation.seconds
    if not tokens or not seconds:
        return Deployment(reason=generation.reason or "the evaluation generated no text")
    spent = record.spent if record is not None else None
    if record is None or spent is None or not spent.value:
        return Deployment(reason="the evaluation has no energy figure")
    traced = _traced(generation.start_time, seconds, record, near)
    joules = spent.value / record.duration_seconds * seconds if traced is None else traced
    components = []
    for name in record.energy.total.boundary:
        part: Component = getattr(record.energy, name)
        components.append(
            DeployedComponent(
                component=name,
                joules_per_token=joules / tokens * (part.joules or 0.0) / spent.value,
                instrument=instrument(part.method),
                whose=record.place(name, record.attempts[-1]),
                uncertainty_pct=part.uncertainty_pct,
            )
        )
    return Deployment(
        joules_per_token=joules / tokens,
        tokens=tokens,
        seconds=seconds,
        watts=joules / seconds,
        boundary=record.energy.total.boundary,
        components=components,
        method="mean power of the evaluation" if traced is None else "trace",
    )


def _traced(start_time: float | None, seconds: float, record: StageRecord, near: Path) -> float | None:
    """Energy [J] of the seconds of generation by the trace of the last attempt; None where that cannot be told."""
    if start_time is None or not record.attempts:
        return None
    attempt = record.attempts[-1]
    begin = start_time - attempt.start_time
    try:
        curve = energy_curve(record, attempt, near)
    except TraceError:
        return None  # the caller falls back and says so in `method`
    return joules_between(curve, begin, begin + seconds)
