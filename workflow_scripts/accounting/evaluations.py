"""Evaluations on the way of a training: what they cost, and the held-out loss against what the training itself had used.

A training with `training.eval_steps` notes for each evaluation its step, loss and time. Its energy comes from the power trace
of the attempt that ran it, over exactly that time. It is on the training's bill, and named apart here, so that trainings that
were evaluated at other intervals can be compared.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from workflow_scripts.accounting.traces import TraceError, energy_curve, joules_between


def on_the_way(record: dict[str, Any], near: Path) -> dict[str, Any] | None:
    """Cost and points of a training's evaluations, or None where it made none.

    Keys: `count`, `seconds`, `joules` (of all evaluations; null with a `reason` where no trace covers one) and `points`, each
    with `step`, `eval_loss` and `training_joules`: what all attempts had used when the evaluation began, earlier evaluations
    left out. Evaluations that a killed attempt repeated later are counted once; the first time is in the training's joules.
    """
    evaluations = (record.get("metrics") or {}).get("evaluations")
    if not evaluations:
        return None
    points: list[dict[str, Any]] = [{k: e[k] for k in ("step", "eval_loss")} | {"training_joules": None} for e in evaluations]
    found: dict[str, Any] = {
        "count": len(points),
        "seconds": math.fsum(e["end_time"] - e["start_time"] for e in evaluations),
        "joules": None,
        "reason": None,
        "points": points,
    }
    spent = 0.0
    try:
        for point, evaluation in zip(points, evaluations, strict=True):
            before, own = _joules(record, evaluation, near)
            point["training_joules"] = before - spent
            spent += own
    except TraceError as error:
        return found | {"reason": str(error)}
    return found | {"joules": spent}


def _joules(record: dict[str, Any], evaluation: dict[str, Any], near: Path) -> tuple[float, float]:
    """Joules of all attempts until an evaluation began, and its own. Raises TraceError when no trace covers it."""
    earlier = 0.0
    for attempt in record["attempts"]:
        begin, end = (evaluation[key] - attempt["start_time"] for key in ("start_time", "end_time"))
        if begin >= 0 and evaluation["end_time"] <= attempt["end_time"] + 1:
            curve = energy_curve(record, attempt, near)
            before, own = joules_between(curve, 0.0, begin), joules_between(curve, begin, end)
            if before is not None and own is not None:
                return earlier + before, own
        earlier += attempt.get("total_j") or 0.0
    raise TraceError(f"no power trace covers the evaluation at step {evaluation['step']}")
