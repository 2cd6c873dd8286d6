"""Arithmetic of the forecast: energy and time of one stage from past records of its kind. Pure functions.

A stage costs a fixed part per process (imports, loading the model) and a part in proportion to its work. The work is counted
in FLOPs, else in examples, else in jobs (see `work` beside this), so that past joules scale with tokens and
parameters at once.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from workflow_scripts.errors import UserError

RUN_SPREAD = 0.15  # repeated trainings of half a minute differed by 10 % on a shared machine (README)
FEW_SPREAD = 0.30  # one or two records do not show their spread
DOUBT = 2.0  # records of another model, unfinished …, or work over ten times as much: range wider by this
FAR = 10.0
LATE = 1.1  # a training overshoots its energy budget by up to a flush period and a step
SPREAD_OF_WORK = 1.5  # records whose work differs by less do not tell a fixed cost from a proportional one


class UnpricedError(UserError):
    """A stage or model that cannot be estimated; the message is the reason."""


@dataclass(frozen=True)
class Range:
    """A figure with its bounds."""

    low: float
    mid: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> Range:
        """A figure that is known."""
        return cls(value, value, value)

    @classmethod
    def seen(cls, values: Sequence[float], stated: Range) -> Range:
        """Least, median and most of what was seen; the `stated` range where nothing was."""
        return cls(min(values), statistics.median(values), max(values)) if values else stated

    def __mul__(self, other: Range | float) -> Range:
        """Product of figures that are not negative."""
        other = other if isinstance(other, Range) else Range.exactly(other)
        return Range(self.low * other.low, self.mid * other.mid, self.high * other.high)

    def __add__(self, other: Range) -> Range:
        """Sum with the errors taken as common to both: bounds add up."""
        return Range(self.low + other.low, self.mid + other.mid, self.high + other.high)

    def at_most(self, other: Range) -> Range:
        """The lesser of two figures, bound by bound."""
        return Range(min(self.low, other.low), min(self.mid, other.mid), min(self.high, other.high))

    def wider(self, factor: float) -> Range:
        """Bounds apart by `factor` more on either side."""
        return Range(self.low / factor, self.mid, self.high * factor)


ZERO = Range.exactly(0.0)
# Imports and loading of one process: stages with next to no work took 7 to 25 s on 2 cores.
FIXED_SECONDS = Range(2.0, 8.0, 30.0)


@dataclass(frozen=True)
class Sample:
    """A past stage: its work (FLOPs, examples or jobs), energy [J], time [s], processes started, devices used at once."""

    amount: float
    joules: float
    seconds: float
    processes: int = 1
    devices: int = 1
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cost:
    """Energy [J] and time [s] of a stage, what they rest on, and what to know about them."""

    joules: Range
    seconds: Range
    basis: str
    notes: tuple[str, ...] = ()


def from_history(samples: Sequence[Sample], amount: Range, processes: int, devices: int) -> Cost:
    """Energy and time of `amount` work from past stages of the same kind; needs one sample at least.

    Middle: the median of what each sample predicts. Bounds: the least and the most that a sample predicts with the least and
    the most fixed cost, and RUN_SPREAD (FEW_SPREAD below three samples). Samples with doubts serve where there is no other.
    """
    certain = [s for s in samples if not s.doubts]
    used = certain or samples
    fixed = fixed_joules(used)

    def predicted(sample: Sample, share: float, work: float) -> float:
        return share * processes + (sample.joules - share * sample.processes) * work / sample.amount

    shares = (fixed.low, fixed.mid, fixed.high)
    spread = RUN_SPREAD if len(used) > 2 else FEW_SPREAD
    joules = Range(
        min(predicted(s, share, amount.low) for s in used for share in shares) * (1 - spread),
        statistics.median(predicted(s, fixed.mid, amount.mid) for s in used),
        max(predicted(s, share, amount.high) for s in used for share in shares) * (1 + spread),
    )
    notes = []
    if not certain:
        notes.append(f"only records of {'; '.join(sorted({d for s in used for d in s.doubts}))}: range x {DOUBT:g}")
        joules = joules.wider(DOUBT)
    if amount.mid > FAR * max(s.amount for s in used):
        notes.append(f"{amount.mid / max(s.amount for s in used):.0f} times the work of any record: range x {DOUBT:g}")
        joules = joules.wider(DOUBT)
    pace = statistics.median(s.seconds * s.devices / s.joules for s in used) / devices
    return Cost(joules, joules * pace, f"history n={len(used)}", tuple(notes))


def fixed_joules(samples: Sequence[Sample]) -> Range:
    """What a process costs before it works [J]: the intercept of the samples, else FIXED_SECONDS at their power.

    The intercept is that of Theil and Sen: the median of J - b * work over the median slope b of all pairs (Sen 1968), here per
    process; its bounds are those of the extreme slopes. Never more than nine tenths of the cheapest sample.
    """
    most = 0.9 * min(s.joules / s.processes for s in samples)
    amounts = [s.amount for s in samples]
    if max(amounts) >= SPREAD_OF_WORK * min(amounts):
        slopes = sorted(
            (b.joules - a.joules) / (b.amount - a.amount) for a, b in combinations(samples, 2) if a.amount != b.amount
        )
        if statistics.median(slopes) > 0:
            bounds = (
                statistics.median((s.joules - slope * s.amount) / s.processes for s in samples)
                for slope in (slopes[-1], statistics.median(slopes), slopes[0])
            )
            return Range(*(min(most, max(0.0, joules)) for joules in bounds))
    power = statistics.median(s.joules / s.seconds for s in samples)
    return (FIXED_SECONDS * power).at_most(Range.exactly(most))


def within_budget(cost: Cost, joules: float) -> Cost:
    """The cost of a training that an energy budget [J] may end; it ends one flush and one step late at most (LATE)."""
    found, seconds = cost.joules, cost.seconds
    if found.high <= joules:
        return cost
    cut = found.at_most(Range(joules, joules, joules * LATE))
    shorter = seconds * Range(cut.low / found.low, cut.mid / found.mid, cut.high / found.high)
    return Cost(cut, shorter, cost.basis, (*cost.notes, f"training.energy_budget_kwh = {joules / 3.6e6:g} may end it"))
