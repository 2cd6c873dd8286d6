"""What a host can do to the meter: full disk, stepped clock, detached children, endless output, a second meter."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.helpers.meter_bench import REPOSITORY, Bench, python
from workflow_scripts.energy.ledger import LedgerWriter, read_attempt, read_attempts
from workflow_scripts.energy.meter import main


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"needs the right to mount: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


FILL_THE_DISK = """
import os, time
handle = open({path!r}, "wb", buffering=0)
try:
    while True:
        handle.write(bytes(512))
except OSError:
    time.sleep(3.5)
os.unlink(handle.name)
time.sleep(0.6)
"""


def test_a_full_disk_under_the_ledger_does_not_harm_the_stage(tmp_path, small_disk) -> None:
    bench = Bench(tmp_path, nvml_poll_interval_ms=10, flush_seconds=0.02)
    command = bench.command(*python(FILL_THE_DISK.format(path=str(small_disk / "fill"))))
    command = [part.replace(str(tmp_path / "state"), str(small_disk / "state")) for part in command]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    record = bench.record()
    missing = [w for w in record["warnings"] if "ledger line(s) could not be written: the disk was full" in w]
    assert len(missing) == 1, "more ticks than fit into what was reserved"
    assert any("row(s) of the power trace could not be written" in w for w in record["warnings"])
    assert record["total_energy_joules"] is not None
    (attempt,) = [a for f in (small_disk / "state" / "work").glob("*/attempts") for a in read_attempts(f, "work")]
    assert attempt.end is not None, "once there is room again the ledger goes on with whole lines"


def fill(path: Path, left: int = 0) -> None:
    """Fill the disk up to `left` bytes."""
    with path.open("wb", buffering=0) as handle, contextlib.suppress(OSError):
        while True:
            handle.write(bytes(4096))
    os.truncate(path, path.stat().st_size - left)


@pytest.mark.parametrize("left", [0, 4096], ids=["no room", "room for its beginning"])
def test_a_start_line_that_found_no_room_comes_first_once_there_is(small_disk, left: int) -> None:
    path = small_disk / "ledger.jsonl"
    fill(small_disk / "fill", left)
    ledger = LedgerWriter(path, {"stage": "work", "attempt": "a1", "time": 1.0, "command": ["x" * 6000]})
    ledger.append({"event": "tick", "elapsed_s": 1.0, "joules": {}})
    assert not ledger.started and ledger.lost_lines == 1 and path.stat().st_size == 0
    (small_disk / "fill").unlink()
    ledger.append({"event": "tick", "elapsed_s": 2.0, "joules": {}})
    ledger.close()
    attempt = read_attempt(path, "work")
    assert attempt.start["attempt"] == "a1" and [tick["elapsed_s"] for tick in attempt.ticks] == [2.0]


def test_a_disk_that_fills_up_costs_ticks_and_not_the_end(small_disk) -> None:
    path = small_disk / "ledger.jsonl"
    ledger = LedgerWriter(path, {"stage": "work", "attempt": "a1", "time": 1.0})
    fill(small_disk / "fill")
    for number in range(100):
        ledger.append({"event": "tick", "elapsed_s": number, "joules": {}, "filler": "x" * 1000})
    assert 10 < len(read_attempt(path, "work").ticks) < 90
    ledger.append({"event": "end", "elapsed_s": 100.0, "joules": {}, "filler": "x" * 8000})
    ledger.close()
    attempt = read_attempt(path, "work")
    assert attempt.end is not None and attempt.last["elapsed_s"] == 100.0
    assert ledger.lost_lines == 100 - len(attempt.ticks)
    assert path.stat().st_blocks * 512 < path.stat().st_size + 8192, "what was reserved is given back"


def test_a_ledger_that_never_had_room_gives_no_record_and_says_so(tmp_path, monkeypatch, capsys) -> None:
    bench = Bench(tmp_path)
    monkeypatch.setattr(LedgerWriter, "_write", lambda *arguments: False)
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    assert main(bench.command(*python("pass"))[3:]) == 1
    assert "nothing of this attempt could be written" in capsys.readouterr().err
    assert not (tmp_path / "record.json").exists()


def test_a_clock_that_is_stepped_by_an_hour_leaves_durations_alone(tmp_path, monkeypatch) -> None:
    bench = Bench(tmp_path)
    real, calls = time.time, []

    def stepped() -> float:
        calls.append(1)
        return real() + 3600 * (len(calls) > 1)

    monkeypatch.setattr("workflow_scripts.energy.meter.time.time", stepped)
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    assert main(bench.command(*python("import time; time.sleep(1)"))[3:]) == 0
    record = bench.record()
    assert 1.0 <= record["duration_seconds"] < 10
    assert record["end_time"] - record["start_time"] == pytest.approx(record["duration_seconds"])


def test_a_detached_child_is_found_and_ended(tmp_path) -> None:
    bench = Bench(tmp_path)
    code = "import subprocess, time; p = subprocess.Popen(['sleep', '60'], start_new_session=True); print(p.pid, flush=True)"
    assert bench.run(*python(code)).returncode == 0
    pid = int((tmp_path / "log").read_text())
    assert not Path(f"/proc/{pid}").exists()
    assert "the stage left processes behind; they were ended" in bench.record()["warnings"]


PRINT_A_GIGABYTE = """
import os
block = b"x" * 1048575 + b"\\n"
for _ in range(1024):
    os.write(1, block)
print("the end")
raise SystemExit(3)
"""


def test_a_gigabyte_of_output_goes_to_the_log_and_not_through_memory(tmp_path) -> None:
    bench = Bench(tmp_path)
    result = bench.run(*python(PRINT_A_GIGABYTE))
    assert result.returncode == 3
    assert (tmp_path / "log").stat().st_size > 1 << 30
    assert "the end" in result.stderr and len(result.stderr) < 40_000
    record = json.loads(next((tmp_path / "state").glob("work/*/record.json")).read_text())
    assert record["overhead"]["max_rss_mb"] < 400
    (tmp_path / "log").unlink()


def test_two_meters_on_one_host_flag_each_other(tmp_path) -> None:
    benches = [Bench(tmp_path / name) for name in ("a", "b")]
    stages = ("import time; time.sleep(3)", "import time; time.sleep(0.5)")  # the second begins and ends within the first
    processes = [bench.start(*python(code)) for bench, code in zip(benches, stages, strict=True)]
    assert [p.wait(30) for p in processes] == [0, 0]
    for bench, other in zip(benches, reversed(processes), strict=True):
        expected = f"another meter ran on this host at the same time (process {other.pid}, stage work)"
        assert any(w.startswith(expected) for w in bench.record()["warnings"])
