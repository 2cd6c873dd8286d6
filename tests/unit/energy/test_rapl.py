"""RAPL zones: wraps, resets, zones that fail, and how they are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from workflow_scripts.energy.sources.base import Counter, CounterError
from workflow_scripts.energy.sources.rapl import RaplSource, Zone, find_zones


@pytest.mark.parametrize("limit", [262143328850, 65532610987])
def test_rapl_wraps_of_two_packages(limit: int) -> None:
    """24 h at 200 W per package: 17.28 MJ each, many wraps, read every 60 s."""
    raw = {"a": 0, "b": limit - 5}
    source = RaplSource([Zone(name, "cpu", lambda name=name: raw[name], limit) for name in raw], now=0.0)
    step = 200 * 60 * 1_000_000
    for minute in range(1, 24 * 60 + 1):
        for name in raw:
            raw[name] = (raw[name] + step) % limit
        figure = source.read(60.0 * minute)["cpu"]
    assert figure.joules == pytest.approx(2 * 17.28e6, rel=1e-9)
    assert figure.energy_class == "measured"


def test_a_backward_step_that_is_no_wrap_is_an_error_and_the_rest_stays() -> None:
    counter = Counter(1e-6, wrap_at=262143328850)
    counter.advance(0.0, 200_000_000_000)
    counter.advance(1.0, 200_100_000_000)
    with pytest.raises(CounterError, match="went back from 200100000000 to 5 in 1.0 s, which is no wrap"):
        counter.advance(2.0, 5)
    assert counter.joules == pytest.approx(100.0)
    with pytest.raises(CounterError):
        counter = Counter(1e-3)
        counter.advance(0.0, 10)
        counter.advance(1.0, 9)


def test_a_rapl_zone_that_fails_makes_its_component_unavailable_with_the_reason() -> None:
    state = {"fail": False}

    def read() -> int:
        if state["fail"]:
            raise PermissionError(13, "Permission denied")
        return 0

    source = RaplSource([Zone("intel-rapl:0 package-0", "cpu", read, 10**12), Zone("d", "dram", lambda: 7, 10**12)], 0.0)
    state["fail"] = True
    figures = source.read(1.0)
    assert figures["cpu"].joules is None
    assert figures["cpu"].reason == "RAPL zone intel-rapl:0 package-0: Permission denied"
    assert figures["dram"].joules == 0.0, "a counter that did not move is a real 0"


def powercap(root: Path, **zones: str) -> dict[str, Path]:
    """A tree of zones by name, each with what its counter reads; returns the counters."""
    counters = {}
    for index, (name, text) in enumerate(zones.items()):
        zone = root / f"intel-rapl:{index}"
        zone.mkdir(parents=True)
        (zone / "name").write_text(name.replace("_", "-"))
        (zone / "max_energy_range_uj").write_text("262143328850")
        counters[name] = zone / "energy_uj"
        counters[name].write_text(text)
    return counters


def test_a_component_with_a_zone_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    powercap(tmp_path, package_0="", package_1="7", dram="5")
    source = RaplSource(find_zones(tmp_path), 0.0)
    assert source.refused == {"cpu": "RAPL zone intel-rapl:0 package-0 cannot be read: energy_uj is empty"}
    assert list(source.read(1.0)) == ["dram"], "half of the packages is no CPU"


@pytest.mark.parametrize(
    ("file", "reason"), [("name", "name is empty"), ("max_energy_range_uj", "max_energy_range_uj is empty")]
)
def test_unreadable_rapl_says_so(tmp_path: Path, file: str, reason: str) -> None:
    with pytest.raises(OSError, match="no RAPL: .* does not exist"):
        find_zones(tmp_path / "absent")
    (counter,) = powercap(tmp_path, package_0="x").values()
    with pytest.raises(OSError, match="RAPL zone intel-rapl:0 package-0 cannot be read: invalid literal for int"):
        RaplSource(find_zones(tmp_path), 0.0)
    counter.with_name(file).write_text("")
    with pytest.raises(OSError, match=f"RAPL zone intel-rapl:0 cannot be read: {reason}"):
        find_zones(tmp_path)


def test_a_zone_that_answers_again_has_lost_nothing_of_its_counter(tmp_path: Path) -> None:
    (counter,) = powercap(tmp_path, package_0="1000000").values()
    source = RaplSource(find_zones(tmp_path), 0.0)
    figures = []
    for now, text in enumerate(("2000000", "", "9000000"), start=1):
        counter.write_text(text)
        figures.append(source.read(float(now))["cpu"])
    assert [figure.joules for figure in figures] == [1.0, None, 8.0]
    assert figures[1].reason == "RAPL zone intel-rapl:0 package-0: energy_uj is empty"
    assert figures[1].devices == {"intel-rapl:0 package-0": 1.0}


def test_a_zone_that_was_silent_for_longer_than_its_range_is_lost(tmp_path: Path) -> None:
    (counter,) = powercap(tmp_path, package_0="1000000").values()
    source = RaplSource(find_zones(tmp_path), 0.0)
    counter.write_text("")
    source.read(1.0)
    for now, text in ((300.0, "9000000"), (301.0, "9100000"), (302.0, "")):
        counter.write_text(text)
        figure = source.read(now)["cpu"]
        assert figure.joules is None
        assert figure.reason == "RAPL zone intel-rapl:0 package-0: it could not be read for 300 s, in which it may have wrapped"


def test_zones_are_found_through_symlinks_and_each_package_once(tmp_path: Path) -> None:
    """/sys/class/powercap holds links, and shows packages a second time through the memory-mapped interface."""
    devices, root = tmp_path / "devices", tmp_path / "class"
    root.mkdir()
    for folder, name in (
        ("intel-rapl:0", "package-0"),
        ("intel-rapl:0/intel-rapl:0:0", "core"),
        ("intel-rapl:0/intel-rapl:0:1", "dram"),
        ("intel-rapl:1", "package-1"),
        ("intel-rapl:2", "psys"),
        ("intel-rapl-mmio:0", "package-0"),
    ):
        zone = devices / folder
        zone.mkdir(parents=True)
        for file, text in (("name", name), ("energy_uj", "5"), ("max_energy_range_uj", "262143328850")):
            (zone / file).write_text(text)
        (root / zone.name).symlink_to(zone)
    found = sorted((zone.label, zone.component) for zone in find_zones(root))
    assert found == [
        ("intel-rapl:0 package-0", "cpu"),
        ("intel-rapl:0:1 dram", "dram"),
        ("intel-rapl:1 package-1", "cpu"),
    ]
