"""The deployed cost: joules per generated token of a model, from the generation at the end of its evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workflow_scripts.accounting.errors import whose
from workflow_scripts.accounting.traces import TraceError, energy_curve, joules_between
from workflow_scripts.energy.uncertainty import instrument

NOTHING: dict[str, Any] = {
    "joules_per_token": None,
    "tokens": None,
    "seconds": None,
    "watts": None,
    "boundary": [],
    "components": [],
}


def deployed_cost(evaluation: dict[str, Any] | None, record: dict[str, Any] | None, near: Path) -> dict[str, Any]:
    """Joules per generated token [J], mean power [W] and how they were obtained; null with a `reason`.

    The energy of the generation's seconds comes from the meter's trace; where that is gone, or does not say when they were,
    from the mean power of the whole evaluation, which loading the model lowers or raises (`method` says which).
    `components` splits the figure by component, in the proportion of the stage's record, with each one's instrument.
    """
    generation = (evaluation or {}).get("generation") or {}
    tokens, seconds = generation.get("generated_tokens"), generation.get("seconds")
    if not tokens or not seconds:
        return {**NOTHING, "method": None, "reason": generation.get("reason") or "the evaluation generated no text"}
    if record is None or not record.get("total_energy_joules"):
        return {**NOTHING, "method": None, "reason": "the evaluation has no energy figure"}
    joules, method = _traced(generation, record, near), "trace"
    if joules is None:
        joules, method = record["total_energy_joules"] / record["duration_seconds"] * seconds, "mean power of the evaluation"
    per_token = joules / tokens
    boundary = record["energy"]["total"]["boundary"]
    shares = {name: record["energy"][name]["joules"] / record["total_energy_joules"] for name in boundary}
    return {
        "joules_per_token": per_token,
        "tokens": tokens,
        "seconds": seconds,
        "watts": joules / seconds,
        "boundary": boundary,
        "components": [
            {
                "component": name,
                "joules_per_token": per_token * share,
                "instrument": instrument(record["energy"][name]["method"]),
                "whose": whose(record, name),
                "uncertainty_pct": record["energy"][name]["uncertainty_pct"],
            }
            for name, share in shares.items()
        ],
        "method": method,
        "reason": None,
    }


def _traced(generation: dict[str, Any], record: dict[str, Any], near: Path) -> float | None:
    """Energy [J] of the seconds of generation by the trace of the last attempt; None where that cannot be told."""
    if generation.get("start_time") is None or not record["attempts"]:
        return None
    attempt = record["attempts"][-1]
    begin = generation["start_time"] - attempt["start_time"]
    try:
        curve = energy_curve(record, attempt, near)
    except TraceError:
        return None  # the caller falls back and says so in `method`
    return joules_between(curve, begin, begin + generation["seconds"])
