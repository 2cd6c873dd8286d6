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

from tests.helpers.meter_bench import REPOSITORY, Bench, python, wait_for
from workflow_scripts.energy.child import GPU_DRIVERS
from workflow_scripts.energy.ledger import LedgerWriter, read_attempt, read_attempts
from workflow_scripts.energy.live import read_report
from workflow_scripts.energy.meter import main
from workflow_scripts.progress import Progress


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


def test_a_retry_on_a_host_whose_clock_is_behind_is_the_newest_attempt(tmp_path) -> None:
    bench = Bench(tmp_path)
    assert bench.run(*python("raise SystemExit(3)")).returncode == 3
    (ledger,) = (tmp_path / "state" / "work").glob("*/attempts/*.jsonl")
    start, *rest = ledger.read_text().splitlines()
    ahead = json.loads(start)
    ledger.write_text("\n".join([json.dumps(ahead | {"time": ahead["time"] + 240}), *rest, ""]))
    assert bench.run(*python("pass")).returncode == 0
    assert bench.record()["status"] == "complete" and bench.record()["attempts"][-1]["outcome"] == "completed"


def test_a_standard_error_on_a_full_disk_costs_its_lines_alone(tmp_path) -> None:
    bench = Bench(tmp_path)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(bench.command(*python("pass")), cwd=REPOSITORY, stderr=full, check=False)
    assert done.returncode == 0 and bench.record()["status"] == "complete"


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


def test_two_meters_on_one_host_flag_each_other(tmp_path, monkeypatch) -> None:
    """The second begins and ends within the first, and has another folder for temporary files."""
    benches = [Bench(tmp_path / name) for name in ("a", "b")]
    ended = tmp_path / "ended"
    wait = f"import os, time\nwhile not os.path.exists({str(ended)!r}): time.sleep(0.02)"
    first = benches[0].start(*python(wait))
    wait_for(benches[0].ledgers)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    second = benches[1].start(*python("pass"))
    assert second.wait(30) == 0
    ended.touch()
    assert first.wait(30) == 0
    for bench in benches:
        assert len([w for w in bench.record()["warnings"] if w.endswith("host-level joules are in all their records")]) == 1


METER_OF_A_USER = """
import os, sys
from workflow_scripts.energy.neighbours import Neighbours
os.setuid(int(sys.argv[1]))
neighbours = Neighbours(sys.argv[2])
print(flush=True)
sys.stdin.readline()
neighbours.look()
print(*(f"{pid}:{stage}" for pid, stage in neighbours.seen.items()), flush=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_meters_of_two_users_find_each_other() -> None:
    running = []
    for user, stage in (("0", "mine"), ("65534", "their stage")):
        command = [*python(METER_OF_A_USER), user, stage]
        process = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "\n"
        running.append(process)
    mine, theirs = running
    assert f"{mine.pid}:mine" in theirs.communicate("\n")[0].split()
    assert f"{theirs.pid}:their_stage" in mine.communicate("\n")[0].split(), "it has ended, and was said to be there"


WORK = '"unit": "loss", "total": null, "work": {"steps": 3, "loss": 30}, "durable": null, "resumed": null, "measured": {}'


@pytest.mark.parametrize(
    ("text", "steps", "metrics", "said"),
    [
        (
            f'{{{WORK}, "metrics": {{"loss": NaN}}, "warnings": []}}',
            3,
            {"loss": None},
            "reported metrics.loss = nan, which is not",
        ),
        (f'{{{WORK}, "metrics": {{"a": [1, -Infinity]}}, "warnings": []}}', 3, {"a": [1, None]}, "metrics.a[1] = -inf, which"),
        (f'{{{WORK}, "metrics": {{"a": {10**30}}}, "warnings": []}}', 3, {"a": None}, "metrics.a beyond 64 bits"),
        (
            f'{{{WORK}, "metrics": {{"evaluations": 7, "b": 1}}, "warnings": []}}',
            3,
            {"b": 1},
            "metrics that are none: evaluations",
        ),
        (
            f'{{{WORK.replace("30", "NaN")}, "metrics": {{}}, "warnings": []}}',
            None,
            {},
            "was not read: work.loss: Input should be",
        ),
        (
            f'{{{WORK.replace("30", "1.5")}, "metrics": {{}}, "warnings": []}}',
            None,
            {},
            "was not read: work.loss: Input should be",
        ),
        (f'{{{WORK}, "metrics": {{}}, "warnings": "many"}}', None, {}, "was not read: warnings: Input should be a valid list"),
        ("text", None, {}, "was not read: JSONDecodeError"),
        ("[" * 100_000, None, {}, "was not read: RecursionError"),
        ("[]", None, {}, "was not read: all of it: Input should be"),
        (f'{{{WORK}, "metrics": {{"a": "{"x" * 10_000_000}"}}, "warnings": []}}', None, {}, "bytes was not read: the limit is"),
        ("", None, {}, "was not read: JSONDecodeError"),
    ],
    ids=["NaN", "infinity", "huge", "metrics", "NaN count", "count", "warnings", "text", "deep", "list", "10 MB", "empty"],
)
def test_a_stage_may_report_anything(tmp_path, text: str, steps: int | None, metrics: dict, said: str) -> None:
    (tmp_path / "report").write_text(text)
    report, dropped = read_report(tmp_path / "report")
    assert (report and report["work"]["steps"]) == steps and (report["metrics"] if report else {}) == metrics
    assert len(dropped) == 1 and said in dropped[0]


def test_a_number_that_is_none_does_not_end_the_meter(tmp_path) -> None:
    report = tmp_path / "report"
    report.write_text(f'{{{WORK}, "metrics": {{"loss": NaN}}, "warnings": []}}')
    code = f"""
import json, os, shutil, time
shutil.copy({str(report)!r}, os.environ["STAGE_PROGRESS"])
begun = time.time()
while json.load(open(os.environ["STAGE_ENERGY"]))["time"] < begun + 0.2:
    time.sleep(0.02)
"""
    bench = Bench(tmp_path)
    result = bench.run(*python(code))
    assert result.returncode == 0, result.stderr
    record = bench.record()
    assert record["work"]["loss"] == 30 and record["metrics"] == {"loss": None}
    assert record["warnings"].count("the stage reported metrics.loss = nan, which is not finite: null in the record") == 1


def test_a_stage_that_measures_much_reports_its_counts(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("STAGE_PROGRESS", str(tmp_path / "progress.json"))
    with Progress("loss") as progress:
        progress.add(loss=7)
        progress.measure({f"metric {number}": 1.0 for number in range(100_000)})
    report, dropped = read_report(tmp_path / "progress.json")
    assert report is not None and report["work"] == {"steps": 0, "examples": 0, "loss": 7} and dropped == []
    assert "bytes of metrics and warnings were left out of the record" in report["warnings"][0]


def test_settings_decide_and_not_the_environment(tmp_path, monkeypatch) -> None:
    foreign = {"ACCELERATE_MIXED_PRECISION": "bf16", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": "1"}
    foreign |= {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1", "NVIDIA_TF32_OVERRIDE": "0"}
    for name, value in foreign.items() | {
        ("SOMETHING_ELSE", "secret"),
        ("HF_HOME", "/models"),
        ("CUDA_DEVICE_ORDER", "FASTEST_FIRST"),
    }:
        monkeypatch.setenv(name, value)
    bench = Bench(tmp_path)
    seen = tmp_path / "seen.json"
    assert bench.run(*python(f"import json, os; json.dump(dict(os.environ), open({str(seen)!r}, 'w'))")).returncode == 0
    environment = json.loads(seen.read_text())
    assert not {*foreign, "SOMETHING_ELSE"} & set(environment)
    assert (environment["HF_HOME"], environment["CUDA_DEVICE_ORDER"]) == ("/models", "PCI_BUS_ID")
    record = bench.record()
    assert {*foreign, "SOMETHING_ELSE", "CUDA_DEVICE_ORDER"} <= set(record["provenance"]["dropped_environment"])
    (said,) = [w for w in record["warnings"] if w.startswith("the stage was started without ")]
    assert all(name in said for name in (*foreign, "CUDA_DEVICE_ORDER")) and "SOMETHING_ELSE" not in said


@pytest.mark.skipif(any(map(os.path.exists, GPU_DRIVERS)), reason="a host with a GPU keeps glibc's defaults")
def test_a_stage_without_a_gpu_keeps_its_memory(tmp_path: Path) -> None:
    """Pages that a freed tensor had are used again, not mapped and faulted in anew."""
    faults = tmp_path / "faults"
    bench = Bench(tmp_path)
    program = (
        "import resource\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "bytearray(100_000_000)\n"
        "before = faults()\n"
        "for _ in range(5): bytearray(100_000_000)\n"
        f"open({str(faults)!r}, 'w').write(str(faults() - before))\n"
    )
    assert bench.run(*python(program)).returncode == 0
    assert int(faults.read_text()) < 1000  # 122,000 by default


@pytest.mark.parametrize("content", ["[codecarbon]\nforce_cpu_power = 400\n", "broken"])
def test_a_configuration_of_codecarbon_is_ignored_and_said(tmp_path, monkeypatch, content: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CODECARBON_FORCE_RAM_POWER", "150")
    (tmp_path / ".codecarbon.config").write_text(content)
    bench = Bench(tmp_path)
    assert bench.run(*python("pass")).returncode == 0
    said = "CodeCarbon's own configuration is ignored, the section `energy` decides: "
    assert f"{said}~/.codecarbon.config, CODECARBON_FORCE_RAM_POWER" in bench.record()["warnings"]


SLOW = """
import sys, time

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "pydantic":
            time.sleep(3)

sys.meta_path.insert(0, Slow())
"""


def test_what_is_spent_is_on_disk_although_the_meter_is_still_importing(tmp_path) -> None:
    """The first lines came 0.2 to 0.5 s late, after pydantic: a kill before them lost the attempt."""
    bench = Bench(tmp_path)
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(SLOW)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'path'}{os.pathsep}{REPOSITORY}"}
    meter = subprocess.Popen(bench.command("sleep", "60"), cwd=REPOSITORY, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("state/*/*/attempts/*.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(1.5)
    meter.kill()
    meter.wait()
    (attempt,) = bench.ledgers()
    assert attempt.end is None and len(attempt.ticks) >= 5 and attempt.ticks[0]["elapsed_s"] < 0.5
