"""Intervals of differences and ratios of energies, by drawing their errors.

A figure of instrument k reads J (1 + e_k p_k): p_k is the relative half-width of the record, e_k one number for all figures
that this instrument of this host gave, because its error is systematic (JCGM 100:2008, 5.2). Hence

    E_a - E_b = sum over k of (J_ak - J_bk) (1 + e_k p_k)

has the half-width p_k |J_ak - J_bk| by instrument k: the common part cancels. Where one instrument gave all three figures,
E_t / (E_b - E_s) does not depend on e_k at all: (1 + e_k p_k) cancels in the ratio.

With several instruments the ratio has no simple distribution (its denominator may cross zero, which means `never`), so it is
drawn: e_k is normal with 95 % of it inside one half-width, the seed is fixed, the interval is the middle 95 % of DRAWS draws.
Where several runs (seeds) of an experiment exist, the spread of their mean is drawn as well, as Student's t with n - 1 degrees
of freedom (JCGM 100:2008, 4.2 and G.3). A single run says nothing about its repeatability: its interval holds instruments only,
and where one instrument gave all figures there is nothing left to draw: no interval is better than one of no width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from workflow_scripts.energy.uncertainty import Figure, Instrument

DRAWS = 100_000
SEED = 20_230_515
HALF_WIDTH = 1.959964  # standard deviations of a normal distribution, 95 % of it inside


@dataclass(frozen=True)
class Interval:
    """Middle 95 % of the draws; a bound is None where it is infinite (`never`), `never` the probability of that."""

    low: float | None
    high: float | None
    never: float


def only_one_instrument(figures: Iterable[Figure]) -> bool:
    """Whether all errors are known, those of one instrument, and without spread over runs: they cancel when compared."""
    keys: set[Instrument] = set()
    for figure in figures:
        if figure.errors is None or figure.spread is not None:
            return False
        keys |= figure.errors.keys()
    return len(keys) == 1


def sample(figures: Sequence[Figure]) -> list[np.ndarray] | None:
    """DRAWS joint draws of each figure, [DRAWS] each; None when an uncertainty is not known."""
    known = [f.errors for f in figures if f.errors is not None]
    if len(known) < len(figures):
        return None
    keys = sorted({key for errors in known for key in errors})
    generator = np.random.default_rng(SEED)
    common = dict(zip(keys, generator.standard_normal((len(keys), DRAWS)) / HALF_WIDTH, strict=True))
    drawn = []
    for figure, errors in zip(figures, known, strict=True):
        values = np.full(DRAWS, float(figure.value))
        for key, half_width in errors.items():
            values += half_width * common[key]
        if figure.spread is not None:
            values += figure.spread / math.sqrt(figure.runs) * generator.standard_t(figure.runs - 1, DRAWS)
        drawn.append(values)
    return drawn


def ratio_interval(above: Figure, minuend: Figure, subtrahend: Figure) -> Interval | None:
    """Interval of above / (minuend - subtrahend); a denominator that is not positive counts as `never`, infinity."""
    drawn = sample([above, minuend, subtrahend])
    if drawn is None:
        return None
    saved = drawn[1] - drawn[2]
    values = np.full(DRAWS, np.inf)
    np.divide(drawn[0], saved, out=values, where=saved > 0)
    ordered = np.sort(values)
    low, high = (float(ordered[round(q * (DRAWS - 1))]) for q in (0.025, 0.975))
    return Interval(_finite(low), _finite(high), float(np.mean(~np.isfinite(values))))


def interval(values: np.ndarray) -> tuple[float, float]:
    """Middle 95 % of draws."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
