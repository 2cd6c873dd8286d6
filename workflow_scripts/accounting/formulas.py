"""The formulas of the comparison. Energies in joules unless a name says otherwise."""

from __future__ import annotations

import math
from collections.abc import Mapping


def break_even_reuse(teacher_j: float, distilled_student_j: float, baseline_student_j: float) -> float | None:
    """N*: reuses of the teacher's output after which distilling costs less than training on gold data.

    N* = E_teacher / (E_baseline_student - E_distilled_student); None means never (the denominator is not positive).
    """
    saved = baseline_student_j - distilled_student_j
    return teacher_j / saved if saved > 0 else None


def served_tokens_until_repaid(extra_j: float, reference_j_per_token: float, student_j_per_token: float) -> float | None:
    """T*: generated tokens after which the energy `extra_j` spent on making the student is repaid by serving it.

    T* = E_extra / (j_reference - j_student), in tokens; None means never (a token of the student costs no less).
    """
    saved = reference_j_per_token - student_j_per_token
    return extra_j / saved if saved > 0 else None


def amortised(teacher_j: float, student_j: float, reuses: float) -> float:
    """E(N) = E_teacher / N + E_student [J]: what one student costs when N students use the teacher's output.

    Raises ValueError when `reuses` is not positive.
    """
    if reuses <= 0:
        raise ValueError(f"reuses = {reuses}: a teacher's output is used at least once")
    return teacher_j / reuses + student_j


def pareto_front(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """Names of the points (energy, quality; more quality is better) that no other point dominates.

    A point is dominated when another has at most its energy and at least its quality, one of them strictly.
    """
    front = set()
    for name, (energy, quality) in points.items():
        if math.isnan(energy) or math.isnan(quality):
            continue
        if not any(
            e <= energy and q >= quality and (e < energy or q > quality) for other, (e, q) in points.items() if other != name
        ):
            front.add(name)
    return front
