"""Energy to quality and what may be said of it: pure functions of runs, with nothing of files or names in them.

A run is one training with one seed: joules of its work against the held-out loss at each evaluation. With runs over seeds

    E(q | N) = E_teacher / N + E_method(q)        N*(q) = E_teacher / (E_baseline(q) - E_method(q))

where E(q) is interpolated between a run's evaluations, never extrapolated. A sentence is definite where its interval says so
at 95 % for all sentences of a campaign together (Bonferroni), in every scenario: the energies as recorded, by a second energy
model, and with one instrument after the other at either end of its uncertainty. What scales all energies alike cancels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from workflow_scripts.accounting import intervals
from workflow_scripts.accounting.intervals import Array, Mean

Kind = Literal["pays", "never", "only way", "not reached", "undetermined", "not comparable"]
Cause = Literal[
    "one run",  # of the method or the baseline: nothing is known of their spread over seeds
    "no curve",  # no intermediate evaluations: the energy to an equal quality is not known
    "own loss",  # they are of the method's own loss
    "no overlap",  # one of them reaches before its first evaluation what the other never reaches
    "one policy",  # all runs start from one training of the policy
    "target not reached",  # some run does not reach the quality that was asked for
    "target passed",  # some run had it at its first evaluation
    "interval",  # the interval holds both signs
    "together",  # sure by itself, not at 95 % for all sentences of the campaign together
    "rows",  # the held-out rows are too few, or were not kept, to tell the curves apart
    "models disagree",  # an energy model or an instrument at an end of its uncertainty gives another verdict
    "energy",  # an energy or a final quality is not known
    "no teacher",  # nothing that could pay by reuse
]
Interval = tuple[float | None, float | None, float | None]  # value, and bounds at 95 %; None where not known or infinite
RECORDED = "as recorded"
CAMPAIGN = 0.05  # chance that any sentence of a campaign is wrong, at most
POINTWISE = 0.025  # on either side of an interval that is shown


@dataclass(frozen=True)
class Run:
    """A training: `joules` [K] of its work, ascending, and held-out `loss` [K] (lower is better) at each evaluation.

    The last is the final model's, NaN where it was not evaluated. `whole` are the joules of the whole training, with start-up
    and save. `rows` [R] are the final model's summed losses by held-out row, of `tokens` [R] each; empty where they were not
    kept. `scenarios` has the factor on all of its joules by the name of the scenario. Runs of one seed are one run's repeats.
    """

    joules: Array
    loss: Array
    whole: float
    seed: int | None = None
    rows: Array = field(default_factory=lambda: np.empty(0))
    tokens: Array = field(default_factory=lambda: np.empty(0))
    scenarios: Mapping[str, float] = field(default_factory=dict)

    @property
    def best(self) -> float:
        """The lowest loss of any evaluation."""
        return float(self.loss.min())

    @property
    def worsened(self) -> bool:
        """Whether the final model is worse than an earlier evaluation."""
        return bool(self.loss[-1] > self.best)


@dataclass(frozen=True)
class Arm:
    """Runs of one method; `teacher` [k] are the joules of its distinct teacher artefacts with their scenarios, or empty."""

    name: str
    runs: Sequence[Run]
    teacher: Sequence[tuple[float, Mapping[str, float]]] = ()

    @property
    def seeds(self) -> int:
        """Independent runs; those that do not say their seed count as one."""
        return len({run.seed for run in self.runs})

    @property
    def judged(self) -> bool:
        """Whether the final quality of every run is known."""
        return bool(np.isfinite(self.finals).all())

    @property
    def finals(self) -> Array:
        """Loss of the final model by seed [seeds]."""
        return self.over_seeds(lambda run: float(run.loss[-1]))

    @property
    def bests(self) -> Array:
        """Lowest loss of any evaluation by seed [seeds]."""
        return self.over_seeds(lambda run: run.best)

    def over_seeds(self, value: Callable[[Run], float]) -> Array:
        """A value by seed [seeds], mean over its repeats."""
        by_seed: dict[int | None, list[float]] = {}
        for run in self.runs:
            by_seed.setdefault(run.seed, []).append(value(run))
        return np.array([np.mean(values) for values in by_seed.values()])

    def teachers(self, scenario: str) -> Array:
        """Joules of the teacher artefacts in a scenario, [k]."""
        return np.array([joules * factors.get(scenario, 1.0) for joules, factors in self.teacher])


@dataclass(frozen=True)
class Verdict:
    """What may be said of a method against the baseline.

    `kind` is the answer, `at_equal` that at the quality which all runs of both reach (`target`). `reuses` is N* there with the
    bounds of its 95 % interval; without the lower bound it is not known, without the upper one it is infinite. `saved` is
    1 - E_method / E_baseline with its interval; `better` is the baseline's loss minus the method's of the final models. Figures
    are None where they are unknown.
    """

    kind: Kind
    cause: Cause | None = None
    at_equal: Kind | None = None
    target: float | None = None
    baseline_j: float | None = None
    method_j: float | None = None
    teacher_j: float | None = None
    saved: Interval = (None, None, None)
    reuses: Interval = (None, None, None)
    better: Interval = (None, None, None)
    final: tuple[float | None, float | None] = (None, None)
    scenarios: Mapping[str, Kind] = field(default_factory=dict)


def energy_to_quality(run: Run, target: float) -> float:
    """E(q) [J]: joules until the loss was first at `target`, linear between evaluations; NaN outside of them.

    A loss that rises again changes nothing: the best so far counts.
    """
    best = np.minimum.accumulate(run.loss)
    if len(best) < 2 or target > best[0] or target < best[-1]:
        return math.nan
    i = int(np.argmax(best <= target))
    if i == 0:
        return float(run.joules[0])
    part = (best[i - 1] - target) / (best[i - 1] - best[i])
    return float(run.joules[i - 1] + part * (run.joules[i] - run.joules[i - 1]))


def common_target(arms: Iterable[Arm]) -> float | None:
    """The hardest loss that every run of the arms reaches; None where one of them was there at its first evaluation already."""
    runs = [run for arm in arms for run in arm.runs]
    target = max(run.best for run in runs)
    return target if all(run.loss[0] >= target and len(run.loss) > 1 for run in runs) else None


def supported(arms: Sequence[Arm]) -> Array:
    """25 losses on which E(q) of every run is known, from the easiest to the hardest."""
    hardest = common_target(arms) if all(arm.judged for arm in arms) else None
    if hardest is None:
        return np.empty(0)
    return np.linspace(min(run.loss[0] for arm in arms for run in arm.runs), hardest, 25)


def scenarios_of(*arms: Arm) -> list[str]:
    """Names of all scenarios, the recorded energies first."""
    runs = [name for arm in arms for run in arm.runs for name in run.scenarios]
    teachers = [name for arm in arms for _, factors in arm.teacher for name in factors]
    return list(dict.fromkeys([RECORDED, *runs, *teachers]))


def energies(arm: Arm, target: float | None, scenario: str = RECORDED) -> Array:
    """E(q) by seed [seeds]; without a target the joules of the whole trainings."""
    return arm.over_seeds(
        lambda run: (energy_to_quality(run, target) if target is not None else run.whole) * run.scenarios.get(scenario, 1.0)
    )


def judge(method: Arm, baseline: Arm, target: float | None = None, methods: int = 1) -> Verdict:
    """The verdict on a method, at a quality that was asked for or the hardest that every run of both reaches.

    `methods` are those of the campaign. Of the four sentences on each (pays, never, only way, not reached) three at most can be
    wrong at a time, so each is said at 1 - 0.05 / (3 methods).
    """
    if not (method.judged and baseline.judged):
        return Verdict("undetermined", "energy")
    tail = CAMPAIGN / (3 * methods)
    rows = row_difference(method, baseline)
    better, (least, most) = advantage(method, baseline, rows, tail)
    equal = _at_equal(method, baseline, target, rows, tail)
    finals = (float(method.finals.mean()), float(baseline.finals.mean()))
    equal = replace(equal, at_equal=equal.kind, better=better, final=finals)
    if least > 0 and (target is None or bool(np.all(method.finals <= target) and np.all(baseline.bests > target))):
        return replace(equal, kind="only way", cause=None)
    if most < 0 and (target is None or bool(np.all(method.bests > target))):
        return replace(equal, kind="not reached", cause=None)
    return equal


def _at_equal(method: Arm, baseline: Arm, target: float | None, rows: Mean | None, tail: float) -> Verdict:
    """The verdict on the energies to one quality: the target, or the hardest that all reach even if the rows err."""
    arms = [method, baseline]
    hardest, error = common_target(arms), math.sqrt(float(rows.variance)) if rows else 0.0
    if hardest is None:
        short = any(len(run.loss) < 2 for arm in arms for run in arm.runs)
        return Verdict("undetermined", "no curve" if short else "no overlap")
    at = hardest + error if target is None else target
    there = [energies(arm, loss) for arm in arms for loss in (at, at - error, at + error)]
    if not np.isfinite(np.concatenate(there)).all():
        runs = [run for arm in arms for run in arm.runs if target is not None]
        off: Cause = "target not reached" if any(run.best > at for run in runs) else "rows"
        return Verdict("undetermined", "target passed" if any(run.loss[0] < at for run in runs) else off, target=at)
    # what the joules to a loss change by when the rows' standard error shifts one curve against the other
    slope = max(float((harder - easier).mean()) / 2 for harder, easier in (there[1:3], there[4:6]))
    found = compare_energies(method, baseline, at, tail, (slope**2, float(rows.dof)) if rows else (0.0, math.inf))
    return found if rows or found.cause else replace(found, kind="undetermined", cause="rows")


def row_difference(method: Arm, baseline: Arm) -> Mean | None:
    """The baseline's loss minus the method's with the sampling error of the held-out rows; None where rows were not kept."""
    runs = [*method.runs, *baseline.runs]
    if len({tuple(run.tokens) for run in runs}) > 1 or len(runs[0].rows) < 2:
        return None
    theirs, own = (np.mean([run.rows for run in arm.runs], axis=0) for arm in (baseline, method))
    return intervals.paired_difference(theirs, own, runs[0].tokens)


def advantage(method: Arm, baseline: Arm, rows: Mean | None, tail: float = POINTWISE) -> tuple[Interval, tuple[float, float]]:
    """The baseline's loss minus the method's with its interval, and the bounds of a sentence: each side against itself.

    What the method reaches is its final model, what the baseline does not reach is the best of its evaluations, and the other
    way round. The spread over seeds and the sampling error of the held-out rows add up; without either nothing is told.
    """
    final = float(baseline.finals.mean() - method.finals.mean())
    if min(method.seeds, baseline.seeds) < 2 or rows is None:
        return (final, None, None), (-math.inf, math.inf)

    def bounds(theirs: Array, own: Array, tail: float) -> tuple[float, float]:
        one = Mean.of(theirs)
        both = Mean(one.value, *intervals.summed((one.variance, one.dof), (rows.variance, rows.dof)))
        low, high = intervals.difference(both, Mean.of(own), tail)
        return float(low), float(high)

    shown = bounds(baseline.finals, method.finals, POINTWISE)
    least, most = bounds(baseline.bests, method.finals, tail)[0], bounds(baseline.finals, method.bests, tail)[1]
    return (final, *shown), (least, most)


def compare_energies(
    method: Arm, baseline: Arm, target: float | None, tail: float = POINTWISE, further: tuple[float, float] = (0.0, math.inf)
) -> Verdict:
    """Verdict and figures from E(q) of all runs, or from whole trainings where `target` is None (equal tokens).

    `further` is what else the difference of the energies varies by: variance [J^2] and degrees of freedom.
    """
    theirs, own, cost = energies(baseline, target), energies(method, target), method.teachers(RECORDED)
    saved = float(theirs.mean() - own.mean())
    found = Verdict(
        "undetermined",
        target=target,
        baseline_j=float(theirs.mean()),
        method_j=float(own.mean()),
        teacher_j=float(cost.mean()) if len(cost) else None,
        saved=_saved(theirs, own),
    )
    if not len(cost):
        return replace(found, cause="no teacher")
    if min(cost.mean(), theirs.mean(), own.mean()) <= 0:
        return replace(found, cause="energy")
    kinds: dict[str, Kind] = {}
    spans = []
    for name in scenarios_of(method, baseline):
        joules = method.teachers(name), energies(baseline, target, name), energies(method, target, name)
        kinds[name] = _sign(*intervals.break_even(*joules, tail, further))
        spans.append([float(bound) for bound in intervals.break_even(*joules, POINTWISE, further)])
    alone = {_sign(*span) for span in spans}
    low, high = min(span[0] for span in spans), max(span[1] for span in spans)
    star = float(cost.mean()) / saved if saved > 0 else None
    found = replace(found, scenarios=kinds, reuses=(star, _inverse(high), _inverse(low)))
    if min(method.seeds, baseline.seeds) < 2:
        return replace(found, cause="one run")
    if kinds[RECORDED] != "undetermined" and len(set(kinds.values())) > 1:
        return replace(found, cause="models disagree")
    if kinds[RECORDED] == "undetermined":
        return replace(found, cause="together" if len(alone - {"undetermined"}) == len(alone) == 1 else "interval")
    return replace(found, kind=kinds[RECORDED])


def _sign(low: float | Array, high: float | Array) -> Kind:
    return "pays" if low > 0 else "never" if high <= 0 else "undetermined"


def _inverse(rho: float) -> float | None:
    return 1 / rho if rho > 0 else None


def _saved(theirs: Array, own: Array) -> Interval:
    """1 - E_method / E_baseline with its 95 % interval from the spread over seeds, by Fieller for the ratio of two means."""
    if theirs.mean() <= 0:
        return None, None, None
    low, high = intervals.saving_by_reuse(Mean.of(theirs), Mean.of(own), Mean(0.0, 0.0), POINTWISE)
    bounds = (1 - float(high), 1 - float(low)) if np.isfinite([low, high]).all() else (None, None)
    return 1 - float(own.mean() / theirs.mean()), *bounds


def repeatability(arms: Iterable[Arm], repeats: Sequence[Sequence[float]] = ()) -> tuple[float, float] | None:
    """Relative standard deviation of equal work and its degrees of freedom: trainings over seeds, and further groups [J]."""
    spread, dof = intervals.pooled_spread([*(arm.over_seeds(lambda run: run.whole) for arm in arms), *repeats])
    return (float(spread), dof) if dof else None


def seeds_needed(difference: float, spread: float, had: int = 1) -> int | None:
    """Seeds of each arm, more than it `had`, that tell a relative difference from 0 at 95 %; None where 100 do not suffice."""
    for n in range(had + 1, 101):
        if intervals.t_quantile(POINTWISE, 2.0 * (n - 1)) * spread * math.sqrt(2 / n) < abs(difference):
            return n
    return None
