"""Intervals of means, of ratios and of quality, from runs that were repeated. Works on arrays: a first axis may hold campaigns.

A saving by reuse is rho = (E_baseline - E_method) / E_teacher, so N* = 1 / rho, and rho <= 0 means never. Its interval is
Fieller's (1954): all rho for which E_baseline - E_method - rho E_teacher is no further from 0 than t standard errors. Variances
are those of the means, each with its own degrees of freedom, added up by Welch and Satterthwaite (JCGM 100:2008, G.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
SEED = 20_230_515  # of what is drawn: the same input gives the same page
RESAMPLES = 1000
_ANGLES = np.linspace(0.0, np.pi / 2, 4001)
_DOF = np.concatenate([np.arange(1.0, 10.0, 0.05), np.geomspace(10.0, 10_000.0, 200)])


@dataclass(frozen=True)
class Mean:
    """A mean, the variance of that mean, and its degrees of freedom; the variance is NaN where nothing was repeated."""

    value: float | Array
    variance: float | Array = np.nan
    dof: float | Array = np.inf

    @classmethod
    def of(cls, values: ArrayLike) -> Mean:
        """Of repeats along the last axis."""
        found = np.asarray(values, dtype=float)
        n = found.shape[-1]
        variance = found.var(axis=-1, ddof=1) / n if n > 1 else np.full(found.shape[:-1], np.nan)
        return cls(found.mean(axis=-1), variance, float(n - 1) if n > 1 else np.inf)


@cache
def _quantiles(tail: float) -> Array:
    """Quantiles over _DOF: with t = sqrt(nu) tan(a) the density of t over a is that of cos(a)^(nu - 1)."""
    found = []
    for dof in _DOF:
        density = np.cos(_ANGLES) ** (dof - 1)
        density[-1] = 0.0 if dof > 1 else 1.0
        area = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
        found.append(np.sqrt(dof) * np.tan(np.interp(1 - 2 * tail, area / area[-1], _ANGLES)))
    return np.array(found)


def t_quantile(tail: float, dof: ArrayLike) -> Array:
    """Student's t that is exceeded with the probability `tail` (below 0.5); degrees of freedom from 1 on, fractions allowed."""
    inverse = 1 / np.clip(np.asarray(dof, dtype=float), 1.0, 10_000.0)
    return np.interp(inverse, 1 / _DOF[::-1], _quantiles(tail)[::-1])


def summed(*terms: tuple[ArrayLike, ArrayLike]) -> tuple[Array, Array]:
    """Variance and degrees of freedom of a sum of independent terms (variance, degrees of freedom)."""
    variances = [np.asarray(variance, dtype=float) for variance, _ in terms]
    whole = np.sum(np.broadcast_arrays(*variances), axis=0)
    spread = [variance**2 / np.asarray(dof, dtype=float) for variance, (_, dof) in zip(variances, terms, strict=True)]
    below = np.sum(np.broadcast_arrays(*spread), axis=0)
    return whole, np.divide(whole**2, below, out=np.full(np.shape(whole), np.inf), where=below > 0)


def difference(first: Mean, second: Mean, tail: float) -> tuple[Array, Array]:
    """Bounds of first - second, each passed with the probability `tail`."""
    variance, dof = summed((first.variance, first.dof), (second.variance, second.dof))
    middle, width = np.asarray(first.value) - np.asarray(second.value), t_quantile(tail, dof) * np.sqrt(variance)
    return middle - width, middle + width


def saving_by_reuse(
    teacher: Mean,
    baseline: Mean,
    method: Mean,
    tail: float,
    *,
    common_dof: float | None = None,
    further: tuple[ArrayLike, ArrayLike] = (0.0, np.inf),
) -> tuple[Array, Array]:
    """Bounds of rho = (baseline - method) / teacher. Infinite where the teacher's cost is not told from 0; NaN without repeats.

    `common_dof` are the degrees of freedom where one pooled spread stands in all variances: they are not independent then.
    `further` is what else the difference varies by: variance and degrees of freedom.
    """
    saved = np.asarray(baseline.value, dtype=float) - np.asarray(method.value, dtype=float)
    cost, spread = np.asarray(teacher.value, dtype=float), np.asarray(teacher.variance, dtype=float)
    both, _ = summed((baseline.variance, 1), (method.variance, 1), (further[0], 1))
    bounds = []
    for side in (-1.0, 1.0):
        rho = saved / cost
        for _ in range(30):  # the degrees of freedom belong to the bound
            arms = [(baseline.variance, baseline.dof), (method.variance, method.dof), (rho**2 * spread, teacher.dof)]
            if common_dof is not None:
                arms = [(sum(variance for variance, _ in arms), common_dof)]
            dof = summed(*arms, further)[1]
            square = t_quantile(tail, dof) ** 2
            lead = cost**2 - square * spread
            root = np.sqrt(np.maximum((saved * cost) ** 2 - lead * (saved**2 - square * both), 0.0))
            before, rho = rho, np.divide(saved * cost + side * root, lead, out=np.full(root.shape, side * 1e12), where=lead > 0)
            if np.allclose(before, rho, rtol=1e-6, equal_nan=True):
                break
        bounds.append(np.where(np.isnan(both) | np.isnan(spread), np.nan, np.where(lead > 0, rho, side * np.inf)))
    return bounds[0], bounds[1]


def pooled_spread(groups: Sequence[ArrayLike]) -> tuple[Array, float]:
    """Relative standard deviation of work that was done more than once, and its degrees of freedom; NaN and 0 without any.

    A group holds the joules of equal work along its last axis. s^2 = sum (x / mean - 1)^2 / sum (n - 1).
    """
    repeated = [found for group in groups if (found := np.asarray(group, dtype=float)).shape[-1] > 1]
    squares = [((group / group.mean(axis=-1, keepdims=True) - 1) ** 2).sum(axis=-1) for group in repeated]
    dof = sum(group.shape[-1] - 1 for group in repeated)
    return (np.sqrt(np.sum(squares, axis=0) / dof), float(dof)) if dof else (np.array(np.nan), 0.0)


def break_even(
    teacher: ArrayLike,
    baseline: ArrayLike,
    method: ArrayLike,
    tail: float,
    further: tuple[ArrayLike, ArrayLike] = (0.0, np.inf),
) -> tuple[Array, Array]:
    """Bounds of rho from repeats along the last axes; rho counts the reuses that one teacher artefact needs by 1 / rho.

    A teacher artefact that was made more than once has a spread of its own. Of one that was made once nothing is known, and it
    gets the relative spread of the trainings, pooled, which then stands in all three variances.
    """
    made, theirs, own = (np.asarray(values, dtype=float) for values in (teacher, baseline, method))
    if made.shape[-1] > 1:
        return saving_by_reuse(Mean.of(made), Mean.of(theirs), Mean.of(own), tail, further=further)
    spread, dof = pooled_spread([theirs, own] if min(theirs.shape[-1], own.shape[-1]) > 1 else [])

    def alike(values: Array) -> Mean:
        mean = values.mean(axis=-1)
        return Mean(mean, (spread * mean) ** 2 / values.shape[-1], dof)

    return saving_by_reuse(alike(made), alike(theirs), alike(own), tail, common_dof=dof, further=further)


def cost_by_reuse(teacher: Array, method: Array, reuses: float, tail: float) -> tuple[float, float]:
    """Bounds of teacher / reuses + method from repeats [k], [n]; one teacher artefact gets the method's relative spread."""
    made, own = Mean.of(teacher), Mean.of(method)
    if len(teacher) == 1:
        made = Mean(made.value, own.variance * len(method) * (made.value / own.value) ** 2, own.dof)
    variance, dof = summed((made.variance / reuses**2, made.dof), (own.variance, own.dof))
    middle, width = made.value / reuses + own.value, t_quantile(tail, dof) * np.sqrt(variance)
    return float(middle - width), float(middle + width)


@lru_cache(maxsize=4)
def resampled(rows: int) -> Array:
    """How often each of `rows` held-out rows is drawn in each bootstrap sample, [RESAMPLES, rows]."""
    generator = np.random.default_rng(SEED)
    return generator.multinomial(rows, np.full(rows, 1 / rows), size=RESAMPLES).astype(float)


def paired_difference(first: Array, second: Array, tokens: Array) -> Mean:
    """Difference of two losses per token over the same rows, with the sampling error of the rows by a paired bootstrap.

    `first`, `second` [rows] are summed losses, `tokens` [rows] their counts. The variance is enlarged by n / (n - 1): a
    bootstrap draws from n rows as if they were all there are.
    """
    rows = len(tokens)
    value = float((first - second).sum() / tokens.sum())
    if rows < 2:
        return Mean(value)
    draws = resampled(rows)
    found = (draws @ (first - second)) / (draws @ tokens)
    return Mean(value, float(found.var() * rows / (rows - 1)), rows - 1.0)


def pareto_probability(energy: Array, loss: Array) -> Array:
    """Share of draws in which a point is on the front, [points]; `energy` and `loss` [points, draws], lower is better."""
    found = []
    for i in range(len(energy)):
        no_worse = (energy <= energy[i]) & (loss <= loss[i])
        better = (energy < energy[i]) | (loss < loss[i])
        found.append(1 - (no_worse & better).any(axis=0).mean())
    return np.array(found)
