"""Intermediate evaluations of a training: what they cost, and the held-out loss against what the training itself had used.

A training with `training.eval_steps` notes for each evaluation its step, loss and time. Its energy comes from the power trace
of the attempt that ran it, over exactly that time. It is on the training's bill, and named apart here, so that trainings that
were evaluated at other intervals can be compared.
"""

from __future__ import annotations

import math
from pathlib import Path

from workflow_scripts.accounting.model import EvaluationPoint, IntermediateEvaluations
from workflow_scripts.accounting.traces import TraceError, energy_curve, joules_between
from workflow_scripts.energy.model import IntermediateEvaluation, StageRecord


def intermediate_evaluations(record: StageRecord, near: Path) -> IntermediateEvaluations | None:
    """Cost and points of a training's evaluations, or None where it made none.

    The joules are null with a `reason` where no trace covers an evaluation; `training_joules` of a point are what all attempts
    had used when the evaluation began, earlier evaluations left out. Evaluations that a killed attempt repeated later are
    counted once; the first time is in the training's joules.
    """
    evaluations = record.metrics.evaluations
    if not evaluations:
        return None
    found = IntermediateEvaluations(
        count=len(evaluations),
        seconds=math.fsum(e.end_time - e.start_time for e in evaluations),
        joules=None,
        reason=None,
        points=[EvaluationPoint(step=e.step, eval_loss=e.eval_loss, training_joules=None) for e in evaluations],
    )
    spent = 0.0
    try:
        for point, evaluation in zip(found.points, evaluations, strict=True):
            before, own = _joules(record, evaluation, near)
            point.training_joules = before - spent
            spent += own
    except TraceError as error:
        found.reason = str(error)
        return found
    found.joules = spent
    return found


def _joules(record: StageRecord, evaluation: IntermediateEvaluation, near: Path) -> tuple[float, float]:
    """Joules of all attempts until an evaluation began, and its own. Raises TraceError when no trace covers it."""
    earlier = 0.0
    for attempt in record.attempts:
        begin, end = evaluation.start_time - attempt.start_time, evaluation.end_time - attempt.start_time
        if begin >= 0 and evaluation.end_time <= attempt.end_time + 1:
            curve = energy_curve(record, attempt, near)
            before, own = joules_between(curve, 0.0, begin), joules_between(curve, begin, end)
            if before is not None and own is not None:
                return earlier + before, own
        earlier += attempt.total_j or 0.0
    raise TraceError(f"no power trace covers the evaluation at step {evaluation.step}")
