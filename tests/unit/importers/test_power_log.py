"""Power logs: trapezoids by hand, gaps apart, attempts apart, bad rows."""

from __future__ import annotations

import pytest

from tests.unit.importers import first_system as old
from workflow_scripts.importers.first_system.logs import PowerLogError, read_power_log, split


def test_trapezoid_over_real_time_stamps(tmp_path) -> None:
    """100 W at 0 s, 200 W at 1 s, 100 W at 3 s: 150 + 300 = 450 J, not 3 samples x 1 s."""
    path = tmp_path / "power_log.csv"
    old.power_log(path, [(10.0, 100.0), (11.0, 200.0), (13.0, 100.0)])
    log = read_power_log(path)
    assert log.joules == pytest.approx(450)
    assert list(log.curve()) == pytest.approx([0, 150, 450])
    assert log.joules_until(10.5) == pytest.approx(0.5 * (100 + 150) / 2)
    assert log.joules_until(12.0) == pytest.approx(150 + (200 + 150) / 2)
    assert log.joules_until(9.0) == 0
    assert log.joules_until(14.0) == pytest.approx(450 + 100), "the last power stays for a moment"
    assert log.joules_until(1e9) == pytest.approx(450 + 2 * log.period_s * 100), "but not for ever"


def test_gaps_are_part_of_the_energy_and_counted_apart(tmp_path) -> None:
    """Every second 100 W but for 10 s: 2,000 J in 20 s, half of them in the gap."""
    path = tmp_path / "power_log.csv"
    old.power_log(path, [(1000.0 + t, 100.0) for t in [*range(6), *range(15, 21)]])
    log = read_power_log(path)
    assert log.joules == pytest.approx(2000)
    assert log.gaps() == (1, pytest.approx(10.0), pytest.approx(1000.0), pytest.approx(10.0))


def test_rows_that_are_no_samples(tmp_path) -> None:
    """Out of order, the same stamp twice, text, a negative power, a short row, the header again."""
    path = tmp_path / "power_log.csv"
    good = ["11.0,100,100", "10.0,100,100", "12.0,100,100", "12.0,500,500"]
    bad = ["x,1,1", "13.0,-5,-5", "14.0,1", "nan,1,1", "15.0,1,1e9"]
    path.write_text("\n".join(["timestamp,gpu_0_power_w,total_power_w", *good, "timestamp,gpu_0_power_w,total_power_w", *bad]))
    log = read_power_log(path)
    assert (list(log.times), log.bad_rows, log.repeated_rows) == ([10, 11, 12], 5, 1)
    assert log.joules == pytest.approx(200), "the first of two samples of one instant counts"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("1,2,3\n2,2,3\n", "no timestamp and total_power_w"),
        ("timestamp,total_power_w\n1,5\n", r"1 usable sample\(s\) in 1 row"),
    ],
)
def test_no_power_log(tmp_path, text, reason) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(PowerLogError, match=reason):
        read_power_log(tmp_path / "p.csv")


def test_split_by_starts_and_silence(tmp_path) -> None:
    """Silence of 100 s ends an attempt, unless it is known to have lasted; a start in the middle begins one."""
    path = tmp_path / "power_log.csv"
    times = [*range(1000, 1101), *range(1200, 1301)]
    old.power_log(path, [(float(t), 1.0) for t in times])
    log = read_power_log(path)
    (only,), rest = split(log, [1000.0], [1050.0])
    assert (only.end, [(p.start, p.end) for p in rest]) == (1100, [(1200, 1300)])
    (only,), rest = split(log, [1000.0], [1290.0])
    assert (only.end, only.gaps()[1:3], rest) == (1300, (100.0, 100.0), [])
    (first, second), rest = split(log, [1000.0, 1052.0], [1040.0, None])
    assert (first.end, second.start, second.end) == (1049, 1050, 1100), "a sampler starts a moment before its stage"
    assert [(p.start, p.end) for p in rest] == [(1200, 1300)]
    (unsampled,), rest = split(log, [5000.0], [6000.0])
    assert (unsampled, len(rest)) == (None, 2)
