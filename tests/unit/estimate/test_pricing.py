"""The arithmetic of a forecast, without any file."""

from __future__ import annotations

import pytest

from workflow_scripts.estimate.pricing import Range, Sample, fixed_joules, from_history


def test_ranges() -> None:
    assert Range(1, 2, 3) * Range(2, 2, 4) == Range(2, 4, 12)
    assert Range(1, 2, 3) + Range(1, 1, 1) == Range(2, 3, 4)
    assert Range(1, 2, 3).wider(2) == Range(0.5, 2, 6)


def test_the_fixed_cost_is_the_intercept_of_several_records() -> None:
    """Joules 100 + 2 x work exactly: all slopes are 2, the intercept 100."""
    samples = [Sample(work, 100 + 2 * work, 10.0) for work in (10.0, 50.0, 200.0)]
    assert fixed_joules(samples) == Range(100, 100, 100)
    found = from_history(samples, Range.exactly(1000.0), 1, 1)
    assert found.joules.mid == pytest.approx(2100)
    assert (found.joules.low, found.joules.high) == pytest.approx((2100 * 0.85, 2100 * 1.15))
    assert found.basis == "history n=3"


def test_median_and_spread_of_records_of_equal_work() -> None:
    """No slope: 2, 8 or 30 s of 10 W are fixed. At twice the work J -> fixed + (J - fixed) x 2."""
    samples = [Sample(100.0, joules, joules / 10) for joules in (900.0, 1000.0, 1200.0)]
    assert fixed_joules(samples) == Range(20, 80, 300)
    found = from_history(samples, Range.exactly(200.0), 1, 1)
    assert found.joules.mid == pytest.approx(80 + 920 * 2)
    assert found.joules.low == pytest.approx((300 + 600 * 2) * 0.85)
    assert found.joules.high == pytest.approx((20 + 1180 * 2) * 1.15)
    assert found.seconds.mid == pytest.approx(found.joules.mid / 10)


def test_the_range_of_a_repetition_contains_its_own_outcome() -> None:
    for joules in (30.0, 1e3, 1e7):
        found = from_history([Sample(5.0, joules, joules / 100)], Range.exactly(5.0), 1, 1)
        assert found.joules.mid == pytest.approx(joules)
        assert found.joules.low == pytest.approx(0.7 * joules)
        assert found.joules.high == pytest.approx(1.3 * joules)


def test_doubtful_records_serve_only_where_there_is_no_other_and_widen_the_range() -> None:
    good, other = Sample(5.0, 1000.0, 10.0), Sample(5.0, 9000.0, 10.0, doubts=("other hardware",))
    assert from_history([good, other], Range.exactly(5.0), 1, 1).joules.mid == pytest.approx(1000)
    found = from_history([other], Range.exactly(5.0), 1, 1)
    assert (found.joules.low, found.joules.high) == pytest.approx((9000 * 0.7 / 2, 9000 * 1.3 * 2))
    assert found.notes == ("only records of other hardware: range x 2",)


def test_more_devices_take_less_time_for_the_same_energy() -> None:
    sample = Sample(5.0, 1000.0, 10.0, devices=2)
    one, four = (from_history([sample], Range.exactly(5.0), 1, n) for n in (1, 4))
    assert one.joules == four.joules
    assert (one.seconds.mid, four.seconds.mid) == pytest.approx((20.0, 5.0))
