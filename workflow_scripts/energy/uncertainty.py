"""Uncertainty of sums of energies."""

from __future__ import annotations

import math
from collections.abc import Iterable


def instrument(method: str | None) -> str:
    """The instrument behind a method (NVML, RAPL, CodeCarbon, Slurm): figures of one instrument err together."""
    return (method or "unknown").split()[0]


def propagate(parts: Iterable[tuple[str, float, float]]) -> float:
    """Uncertainty of a sum [J] from (instrument, joules, relative uncertainty [%]) of its parts.

    Errors of one instrument are systematic, so they add up linearly; different instruments are independent, so they add in
    quadrature (JCGM 100:2008, 5.1 and 5.2).
    """
    by_instrument: dict[str, float] = {}
    for name, joules, percent in parts:
        by_instrument[name] = by_instrument.get(name, 0.0) + joules * percent / 100
    return math.sqrt(sum(value**2 for value in by_instrument.values()))
