"""The stage's own view of its energy: counters that the test sets, over attempts, components and hosts."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.helpers.meter_bench import Bench, python
from workflow_scripts.energy.ledger import HOSTS, Attempt, LedgerWriter, latest
from workflow_scripts.energy.live import LiveEnergy
from workflow_scripts.progress import energy_so_far

STAGE = """
import json, os, sys, time
from workflow_scripts.progress import energy_so_far
seen = []
def wait_for(joules):
    deadline = time.monotonic() + 20
    while (now := energy_so_far()).joules != joules:
        seen.append(now.joules)
        assert time.monotonic() < deadline, (now, joules)
        time.sleep(0.02)
    return now
path = {counter!r}
def add(joules):
    value = int(open(path).read()) + joules * 1000000
    open(path + "x", "w").write(str(value)); os.replace(path + "x", path)
first = wait_for({before}.0)
add(30)
after = wait_for({before}.0 + 30)
assert after.joules_by_component == {{"cpu": {before} + 30.0, "dram": 0.0}}, after
assert after.reason is None and after.every_seconds == 0.1 and abs(after.time - time.time()) < 5
sys.exit({code})
"""


def test_a_stage_reads_its_joules_and_those_of_earlier_attempts(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    counter = str(bench.rapl / "intel-rapl:0" / "energy_uj")
    assert bench.run(*python(STAGE.format(counter=counter, before=0, code=3))).returncode == 3, (tmp_path / "log").read_text()
    done = bench.run(*python(STAGE.format(counter=counter, before=30, code=0)))
    assert done.returncode == 0, (tmp_path / "log").read_text()
    assert bench.record()["total_energy_joules"] == pytest.approx(60.0)
    assert not list((tmp_path / "state").rglob("energy-*.json")), "it ends with the attempt"


def test_no_source_is_null_with_the_reasons_of_the_boundary(tmp_path: Path) -> None:
    bench = Bench(tmp_path, total_energy_policy="gpu_only")
    code = """
import time
from workflow_scripts.progress import energy_so_far
deadline = time.monotonic() + 20
assert energy_so_far().reason == "the meter has no figure yet" or "no GPU" in energy_so_far().reason
while not (now := energy_so_far()).reason.startswith("gpu: no GPU"):
    assert time.monotonic() < deadline, now
    time.sleep(0.02)
assert now.joules is None and "cpu" in now.joules_by_component
"""
    assert bench.run(*python(code)).returncode == 0, (tmp_path / "log").read_text()


def test_a_stage_without_a_meter_is_told_so(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STAGE_ENERGY", raising=False)
    assert (energy_so_far().joules, energy_so_far().reason) == (None, "the stage runs without the energy meter")
    monkeypatch.setenv("STAGE_ENERGY", str(tmp_path / "energy.json"))
    assert "cannot be read" in (energy_so_far().reason or "")
    (tmp_path / "energy.json").write_text('{"joules": 1')
    assert "cannot be read" in (energy_so_far().reason or "")


OPTIONS = {"total_energy_policy": "measured", "flush_seconds": 2.0}


def entry(joules: float | None, reason: str = "none") -> dict:
    return {"joules": joules, "class": "measured", "reason": None if joules is not None else reason, "devices": {}}


def test_further_hosts_are_in_it_by_their_newest_whole_line(tmp_path: Path) -> None:
    live = LiveEnergy(tmp_path / "energy-a1.json", "a1", [], OPTIONS)
    other = LedgerWriter(tmp_path / "attempts" / HOSTS / "a1.far.jsonl", {"stage": "work", "attempt": "a1", "host": "far"})
    line = {"joules": {"gpu": entry(100.0), "cpu": entry(7.0)}}
    live.write(line)
    assert read(tmp_path)["joules_by_component"] == {}, "a host without a figure yet: the sum is not known"
    assert read(tmp_path)["joules"] is None and read(tmp_path)["reason"].startswith("gpu: host far: it ended before")
    for joules in (1.0, 2.0, 50.0):
        other.append({"event": "tick", "joules": {"gpu": entry(joules), "cpu": entry(joules / 10)}})
    with (tmp_path / "attempts" / HOSTS / "a1.far.jsonl").open("a") as handle:
        handle.write('{"event": "tick", "joules": {"gp')
    live.write(line)
    assert read(tmp_path)["joules_by_component"] == {"gpu": 150.0, "cpu": 12.0}
    assert read(tmp_path)["joules"] == 162.0
    assert time.time() - read(tmp_path)["time"] < 5
    live.remove()
    assert not (tmp_path / "energy-a1.json").exists()


def test_the_joules_of_the_work_phase_are_told_beside_them(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("STAGE_ENERGY", str(tmp_path / "energy-a1.json"))
    live = LiveEnergy(tmp_path / "energy-a1.json", "a1", [], OPTIONS)
    live.write({"joules": {"cpu": entry(9.0)}, "phases": {"start": {"joules": 9.0}}})
    assert (energy_so_far().joules, energy_so_far().work_joules) == (9.0, 0.0)
    live.write({"joules": {"cpu": entry(30.0)}, "phases": {"start": {"joules": 9.0}, "work": {"joules": 21.0}}})
    assert (energy_so_far().joules, energy_so_far().work_joules) == (30.0, 21.0)


def test_the_newest_line_of_a_long_ledger_is_found_from_its_end(tmp_path: Path) -> None:
    writer = LedgerWriter(tmp_path / "a.jsonl", {"stage": "work"})
    for number in range(3000):
        writer.append({"event": "tick", "elapsed_s": number, "joules": {}, "filler": "x" * 200})
    found = latest(tmp_path / "a.jsonl")
    assert found is not None and found.last["elapsed_s"] == 2999 and len(found.ticks) == 1
    (tmp_path / "b.jsonl").write_text('{"event": "sta')
    assert latest(tmp_path / "b.jsonl") is None


def test_a_component_that_loses_its_figure_makes_the_sum_unknown(tmp_path: Path) -> None:
    live = LiveEnergy(tmp_path / "energy-a1.json", "a1", [], OPTIONS)
    live.write({"joules": {"gpu": entry(None), "cpu": entry(7.0)}})
    assert read(tmp_path)["joules"] == 7.0, "a source that never had a figure is not waited for"
    live.write({"joules": {"gpu": entry(100.0), "cpu": entry(8.0)}})
    assert read(tmp_path)["joules"] == 108.0
    live.write({"joules": {"gpu": entry(None, "the driver is gone"), "cpu": entry(9.0)}})
    assert (read(tmp_path)["joules"], read(tmp_path)["reason"]) == (None, "gpu: the driver is gone")
    assert read(tmp_path)["joules_by_component"] == {"cpu": 9.0}
    live.write({"joules": {"gpu": entry(120.0), "cpu": entry(10.0)}})
    assert (read(tmp_path)["joules"], read(tmp_path)["reason"]) == (130.0, None)


def test_a_component_that_an_earlier_attempt_had_and_this_one_lacks_makes_the_sum_unknown(tmp_path: Path) -> None:
    earlier = Attempt(tmp_path / "a0.jsonl", {}, [{"joules": {"gpu": entry(100.0), "cpu": entry(5.0), "node": entry(None)}}])
    live = LiveEnergy(tmp_path / "energy-a1.json", "a1", [earlier], OPTIONS)
    live.write()
    assert read(tmp_path)["joules"] == 105.0
    live.write({"joules": {"gpu": entry(None, "no GPU"), "cpu": entry(2.0)}})
    assert (read(tmp_path)["joules"], read(tmp_path)["reason"]) == (None, "gpu: no GPU")
    live.write({"joules": {"gpu": entry(10.0), "cpu": entry(3.0)}})
    assert read(tmp_path)["joules"] == 118.0


def test_a_component_that_an_earlier_attempt_lacked_makes_the_sum_unknown(tmp_path: Path) -> None:
    earlier = Attempt(tmp_path / "a0.jsonl", {}, [{"joules": {"gpu": entry(None), "cpu": entry(5.0)}}])
    live = LiveEnergy(tmp_path / "energy-a1.json", "a1", [earlier], OPTIONS)
    live.write({"joules": {"gpu": entry(10.0), "cpu": entry(2.0)}})
    assert read(tmp_path)["joules"] is None and read(tmp_path)["reason"] == "gpu: an earlier attempt has no figure"


@pytest.mark.parametrize("damage", [b'{"event": "sta{"event": "tick", "joules": {}}\n', b"\xff\xfe\n", b"5\n", b""])
def test_a_damaged_ledger_of_a_further_host_is_unknown_and_no_error(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "attempts" / HOSTS / "a1.far.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(damage)
    assert latest(path) is None and latest(tmp_path / "missing.jsonl") is None
    LiveEnergy(tmp_path / "energy-a1.json", "a1", [], OPTIONS).write({"joules": {"gpu": entry(100.0), "cpu": entry(7.0)}})
    assert read(tmp_path)["joules"] is None
    assert read(tmp_path)["reason"].startswith(f"gpu: host far: {path} has no readable first line; cpu: host far:")


def read(folder: Path) -> dict:
    return json.loads((folder / "energy-a1.json").read_text())
