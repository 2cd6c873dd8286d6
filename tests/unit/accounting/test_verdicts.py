"""Energy to quality, intervals and verdicts: worked out by hand, and against campaigns of known truth."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from benchmarks import coverage
from workflow_scripts.accounting.intervals import (
    Mean,
    break_even,
    cost_by_reuse,
    difference,
    paired_difference,
    pareto_probability,
    pooled_spread,
    saving_by_reuse,
    t_quantile,
)
from workflow_scripts.accounting.verdicts import (
    Arm,
    Run,
    common_target,
    compare_energies,
    energy_to_quality,
    judge,
    repeatability,
    seeds_needed,
    supported,
)

ROWS = np.linspace(-0.1, 0.1, 50)


def run(joules: list[float], loss: list[float], seed: int | None = 0, scenarios: dict | None = None, rows=ROWS) -> Run:
    return Run(np.array(joules), np.array(loss), joules[-1], seed, loss[-1] + rows, np.ones(len(rows)), scenarios or {})


def arm(name: str, ends: list[float], teacher: list[float] = (), final: float = 3.0, **more) -> Arm:
    """Runs that reach `final` on a straight line to these joules, halfway 1 above it."""
    runs = [run([e / 2, e], [final + 1, final], seed, **more) for seed, e in enumerate(ends)]
    return Arm(name, runs, [(joules, {}) for joules in teacher])


def test_energy_to_quality_is_interpolated_and_never_extrapolated() -> None:
    found = run([100, 200, 400], [5.0, 4.0, 3.0])
    assert energy_to_quality(found, 4.5) == pytest.approx(150)
    assert energy_to_quality(found, 3.25) == pytest.approx(350)
    assert (energy_to_quality(found, 5.0), energy_to_quality(found, 3.0)) == (100, 400)
    assert math.isnan(energy_to_quality(found, 5.1)) and math.isnan(energy_to_quality(found, 2.9))
    assert math.isnan(energy_to_quality(run([400], [3.0]), 3.0)), "one evaluation is no curve"


def test_a_quality_that_gets_worse_counts_by_its_best() -> None:
    found = run([100, 200, 300, 400], [5.0, 4.0, 4.5, 3.5])
    assert found.worsened is False and run([1, 2], [3.0, 4.0]).worsened
    assert energy_to_quality(found, 4.0) == 200
    assert energy_to_quality(found, 3.75) == pytest.approx(350), "from the worse evaluation on, by the best so far"
    assert energy_to_quality(run([100, 200, 300], [5.0, 4.0, 4.5]), 4.0) == 200


def test_the_common_target_is_the_hardest_that_all_reach() -> None:
    first, second = arm("a", [100.0, 110.0], final=3.0), arm("b", [100.0], final=3.5)
    assert common_target([first, second]) == 3.5
    assert supported([first, second])[[0, -1]].tolist() == [4.0, 3.5]
    assert common_target([first, arm("far", [100.0], final=4.5)]) is None, "reached before the first evaluation"
    assert not len(supported([first, arm("far", [100.0], final=4.5)]))


@pytest.mark.parametrize(("dof", "expected"), [(1, 12.706), (2, 4.303), (5, 2.571), (30, 2.042), (1e9, 1.960)])
def test_quantiles_of_student_are_those_of_the_tables(dof: float, expected: float) -> None:
    assert t_quantile(0.025, dof) == pytest.approx(expected, abs=0.002)
    assert t_quantile(0.05, 10) == pytest.approx(1.812, abs=0.002)


def test_the_ratio_s_interval_is_fieller_s() -> None:
    """Known variances: |B - S - rho T| = z sqrt(v_B + v_S + rho^2 v_T) at both bounds."""
    low, high = saving_by_reuse(Mean(600.0, 900.0), Mean(1000.0, 2500.0), Mean(700.0, 1600.0), 0.025)
    z = NormalDist().inv_cdf(0.975)
    for rho in (float(low), float(high)):
        assert abs(300 - 600 * rho) == pytest.approx(z * math.sqrt(4100 + 900 * rho**2), rel=1e-3)
    assert low < 0.5 < high


def test_a_teacher_that_was_made_once_has_the_pooled_spread() -> None:
    """Trainings of 1000 +/- 10 and 500 +/- 10: deviations of 1 and 2 %, pooled over two degrees of freedom."""
    spread, dof = pooled_spread([[990.0, 1010.0], [490.0, 510.0], [7.0]])
    assert dof == 2 and spread == pytest.approx(math.sqrt((2 * 0.01**2 + 2 * 0.02**2) / 2))
    low, high = (float(bound) for bound in break_even([600.0], [990.0, 1010.0], [490.0, 510.0], 0.025))
    known = [Mean(v, (spread * v) ** 2 / n, 2) for v, n in ((600.0, 1), (1000.0, 2), (500.0, 2))]
    assert (low, high) == pytest.approx([float(b) for b in saving_by_reuse(*known, 0.025, common_dof=2)])
    alone = [float(b) for b in difference(Mean.of([990.0, 1010.0]), Mean.of([490.0, 510.0]), 0.025)]
    assert high - low > (alone[1] - alone[0]) / 600 * 0.5 and all(np.isnan(break_even([600.0], [1000.0], [1.0, 2.0], 0.025)))


def test_bounds_without_repeats_and_of_a_teacher_like_nothing_are_no_numbers() -> None:
    assert all(np.isnan(break_even([600.0], [1000.0], [700.0], 0.025)))
    assert break_even([1.0, 900.0], [1000.0, 1001.0], [700.0, 701.0], 0.025)[1] == np.inf
    assert pooled_spread([[1.0], []])[1] == 0


def test_cost_over_reuses_has_the_spread_of_both() -> None:
    low, high = cost_by_reuse(np.array([600.0]), np.array([690.0, 710.0]), 3, 0.025)
    spread = math.sqrt(200) / 700
    variance = (spread * 200) ** 2 + (spread * 700) ** 2 / 2
    dof = variance**2 / ((spread * 200) ** 4 + (spread * 700) ** 4 / 4)
    assert (high + low) / 2 == pytest.approx(900) and high - low == pytest.approx(
        2 * t_quantile(0.025, dof) * math.sqrt(variance)
    )


def test_rows_are_paired() -> None:
    """A row is hard for both: its difference is the same everywhere, so the rows' sampling error is nothing."""
    hard, tokens = np.array([10.0, 50.0, 30.0, 20.0]), np.full(4, 10.0)
    same = paired_difference(hard + 1, hard, tokens)
    assert same.value == pytest.approx(0.1) and same.variance == pytest.approx(0, abs=1e-20)
    other = paired_difference(hard + np.array([4.0, -2.0, 1.0, 1.0]), hard, tokens)
    exact = np.var([0.4, -0.2, 0.1, 0.1]) / 4 * 4 / 3
    assert other.value == pytest.approx(0.1) and other.variance == pytest.approx(exact, rel=0.15) and other.dof == 3
    assert np.isnan(paired_difference(hard[:1], hard[:1], tokens[:1]).variance)


def test_the_front_by_chance() -> None:
    energy, loss = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]), np.array([[5.0, 5.0], [4.0, 6.0], [6.0, 6.0]])
    assert pareto_probability(energy, loss).tolist() == [1.0, 0.5, 0.0]


def test_pays_and_never_where_the_runs_say_so() -> None:
    gold = arm("gold", [1000.0, 1010.0, 990.0])
    pays = judge(arm("kd", [600.0, 606.0, 594.0], [800.0]), gold)
    assert (pays.kind, pays.at_equal, pays.cause) == ("pays", "pays", None)
    star, low, high = pays.reuses
    assert star == pytest.approx(2.0, rel=0.01) and low < star < high and pays.target == pytest.approx(3.0, abs=0.01)
    assert pays.saved[0] == pytest.approx(0.4, rel=0.01)
    never = judge(arm("kd", [1400.0, 1410.0, 1390.0], [800.0]), gold)
    assert never.kind == "never" and never.reuses == (None, None, None)
    same = judge(arm("kd", [1000.0, 1030.0, 980.0], [800.0]), gold)
    assert (same.kind, same.cause) == ("undetermined", "interval") and same.reuses[2] is None


def test_one_run_is_undetermined_whatever_it_says() -> None:
    one = judge(arm("kd", [500.0], [800.0]), arm("gold", [1000.0, 1010.0]))
    assert (one.kind, one.cause, one.reuses[1:]) == ("undetermined", "one run", (None, None))
    assert one.saved[0] == pytest.approx(0.5, abs=0.01)
    unknown = Arm("kd", [run([250, 500], [4.0, 3.0], None), run([250, 505], [4.0, 3.0], None)], [(800.0, {})])
    assert judge(unknown, arm("gold", [1000.0, 1010.0])).cause == "one run", "without a seed they may be one run's repeats"
    twice = Arm("kd", [run([250, 500], [4.0, 3.0], 7), run([250, 520], [4.0, 3.0], 7)], [(800.0, {})])
    assert twice.seeds == 1 and judge(twice, arm("gold", [1000.0, 1010.0])).cause == "one run", "replicates are no seeds"


@pytest.mark.parametrize(
    ("method", "cause"),
    [
        (Arm("kd", [run([500], [3.0], s) for s in (0, 1)], [(800.0, {})]), "no curve"),
        (arm("kd", [500.0, 505.0], [800.0], final=4.5), "no overlap"),
        (arm("kd", [500.0, 505.0]), "no teacher"),
        (arm("kd", [500.0, 505.0], [0.0]), "energy"),
        (arm("kd", [500.0, 505.0, 495.0], [800.0], rows=np.empty(0)), "rows"),
    ],
)
def test_what_cannot_be_judged_says_why(method: Arm, cause: str) -> None:
    gold = arm("gold", [1000.0, 1010.0, 990.0])
    said = judge(method, gold)
    assert (said.at_equal, said.cause) == ("undetermined", cause) or (said.kind, cause) == ("not reached", "no overlap")


def test_only_way_and_not_reached_need_seeds_and_rows() -> None:
    gold = arm("gold", [1000.0, 1010.0, 990.0])
    better = judge(arm("kd", [1000.0, 1001.0, 990.0], [800.0], final=2.5), gold)
    assert better.kind == "only way" and better.better[0] == pytest.approx(0.5) and better.final == pytest.approx((2.5, 3.0))
    worse = judge(arm("kd", [1000.0, 1001.0, 990.0], [800.0], final=3.5), gold)
    assert worse.kind == "not reached"
    assert judge(arm("kd", [1000.0], [800.0], final=2.5), gold).kind == "undetermined"
    assert judge(arm("kd", [1000.0, 1001.0], [800.0], final=2.5, rows=np.empty(0)), gold).kind == "undetermined"
    noisy = np.random.default_rng(0).normal(0, 3.0, 50)
    assert judge(arm("kd", [1000.0, 1001.0], [800.0], final=2.9, rows=noisy - noisy.mean()), gold).kind == "undetermined"


def test_a_quality_that_was_asked_for() -> None:
    gold, kd = arm("gold", [1000.0, 1010.0, 990.0]), arm("kd", [600.0, 606.0, 594.0], [800.0])
    assert judge(kd, gold, target=3.5).target == 3.5 and judge(kd, gold, target=3.5).kind == "pays"
    assert judge(kd, gold, target=2.0).cause == "target not reached"


def test_models_that_disagree_leave_it_undetermined() -> None:
    """By the second model the method's joules are 1.8 times as many: it saves nothing any more."""
    gold = arm("gold", [1000.0, 1010.0, 990.0])
    kd = arm("kd", [600.0, 606.0, 594.0], [800.0], scenarios={"second energy model": 1.8})
    said = judge(kd, gold)
    assert (said.kind, said.cause) == ("undetermined", "models disagree")
    assert said.scenarios == {"as recorded": "pays", "second energy model": "never"}
    alike = arm("kd", [600.0, 606.0, 594.0], [800.0], scenarios={"meter +1": 1.05})
    cancels = Arm("kd", alike.runs, [(800.0, {"meter +1": 1.05})])
    base = arm("gold", [1000.0, 1010.0, 990.0], scenarios={"meter +1": 1.05})
    one, other = judge(cancels, base), judge(arm("kd", [600.0, 606.0, 594.0], [800.0]), gold)
    assert one.reuses == pytest.approx(other.reuses), "an error of one meter cancels"


def test_several_methods_need_more_than_one() -> None:
    gold, kd = arm("gold", [1000.0, 1080.0, 920.0]), arm("kd", [700.0, 756.0, 644.0], [800.0])
    assert judge(kd, gold).kind == "pays" and judge(kd, gold, methods=50).cause == "together"


def test_repeatability_and_what_it_asks_for() -> None:
    spread, dof = repeatability([arm("a", [990.0, 1010.0]), arm("b", [5.0])], [[340.0, 315.0, 475.0]])
    assert dof == 3 and 0.1 < spread < 0.2
    assert repeatability([arm("a", [1.0])]) is None
    assert seeds_needed(0.5, 0.1) == 2 and seeds_needed(0.0, 0.1) is None
    assert seeds_needed(0.5, 0.1, 3) == 4, "three did not tell it"
    n = seeds_needed(0.14, 0.23)
    assert n is not None and t_quantile(0.025, 2 * n - 2) * 0.23 * math.sqrt(2 / n) < 0.14


def test_whole_trainings_give_n_star_at_equal_tokens() -> None:
    """The published formula: 600 / (1000 - 700) = 2."""
    found = compare_energies(arm("kd", [700.0], [600.0]), arm("gold", [1000.0]), None)
    assert found.reuses == (pytest.approx(2.0), None, None) and found.cause == "one run"


def test_definite_sentences_are_wrong_in_at_most_five_per_cent_of_campaigns() -> None:
    """300 random campaigns: no effect, small, large; one to five seeds; one to four methods."""
    generator = np.random.default_rng(2026)
    campaigns = [coverage.campaign(generator) for _ in range(300)]
    wrong = [[c.wrong(name) for name in c.methods] for c in campaigns]
    assert sum(any(texts) for texts in wrong) <= 15, [text for texts in wrong for text in texts if text]
    kinds = [v.kind for c in campaigns for v in c.verdicts.values()] + [
        v.at_equal for c in campaigns for v in c.verdicts.values()
    ]
    assert {"pays", "never", "only way", "not reached", "undetermined"} <= set(kinds), "it does say something"


@pytest.mark.slow
@pytest.mark.parametrize("assumed", coverage.ASSUMED, ids=lambda a: a.name)
def test_intervals_cover_what_they_claim(assumed: coverage.Assumption) -> None:
    off = [cell for cell in coverage.cells(assumed) if not 0.93 <= cell[3] <= 0.97]
    assert not off
    assert "<!-- coverage -->" in coverage.PAGE.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_without_any_effect_a_campaign_says_nothing_wrong(seeds: int) -> None:
    generator = np.random.default_rng(seeds)
    campaigns = [coverage.campaign(generator, seeds, (0.0,)) for _ in range(1000)]
    assert sum(any(c.wrong(name) for name in c.methods) for c in campaigns) <= 65  # 5 %, and two standard errors


@pytest.mark.slow
def test_intervals_from_whole_curves_hold_the_truth() -> None:
    """Rows and seeds move the curves, too: N*(q) is a little wide, never narrow."""
    savings, qualities = coverage.held()
    assert savings >= 0.93 and 0.93 <= qualities <= 0.97
