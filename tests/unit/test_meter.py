"""The meter as users run it: a separate process around real child processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest

from workflow_scripts.energy.ledger import LedgerError, read_attempts
from workflow_scripts.energy.meter import main
from workflow_scripts.energy.sources import RaplSource
from workflow_scripts.energy.state import Lock, LockedError, fingerprint
from workflow_scripts.settings.schema import Energy

REPOSITORY = Path(__file__).parents[2]
SCHEMA = json.loads((REPOSITORY / "workflow_scripts" / "energy" / "record_schema.json").read_text())
WORKER = """
import sys, time
from workflow_scripts.progress import Progress
with Progress("loss", total=100) as progress:
    for _ in range({steps}):
        progress.add(loss=10, steps=1)
        progress.saved()
        time.sleep({sleep})
"""


def rapl_tree(root: Path, **joules: float) -> Path:
    for index, (name, value) in enumerate(joules.items()):
        zone = root / f"intel-rapl:{index}"
        zone.mkdir(parents=True, exist_ok=True)
        (zone / "name").write_text(name.replace("_", "-"))
        (zone / "energy_uj").write_text(str(int(value * 1e6)))
        (zone / "max_energy_range_uj").write_text("262143328850")
    return root


class Bench:
    """A folder to meter in, with a RAPL tree instead of CodeCarbon so that stages can be short."""

    def __init__(self, folder: Path, **energy) -> None:
        self.folder = folder
        self.rapl = rapl_tree(folder / "rapl", package_0=10.0, dram=1.0, psys=99.0)
        options = Energy(nvml_poll_interval_ms=50, flush_seconds=0.1, rapl_root=str(self.rapl), **energy)
        self.options = options.model_dump_json()

    def command(self, *child: str) -> list[str]:
        base = [sys.executable, "-m", "workflow_scripts.energy.meter", "--stage", "work", "--role", "student"]
        paths = [f"--{n}={self.folder / p}" for n, p in (("record", "record.json"), ("log", "log"), ("state", "state"))]
        return [*base, *paths, "--options", self.options, "--", *child]

    def start(self, *child: str) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(*child),
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )

    def run(self, *child: str) -> subprocess.CompletedProcess:
        process = self.start(*child)
        _, stderr = process.communicate(timeout=60)
        return subprocess.CompletedProcess(child, process.returncode, None, stderr)

    def record(self) -> dict:
        record = json.loads((self.folder / "record.json").read_text())
        jsonschema.validate(record, SCHEMA)
        return record

    def ledgers(self) -> list:
        return [a for f in (self.folder / "state" / "work").glob("*/attempts") for a in read_attempts(f, "work")]

    def wait_for_tick(self, process: subprocess.Popen) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and process.poll() is None:
            mine = [a for a in self.ledgers() if a.start["pid"] == process.pid]
            if mine and mine[0].ticks and mine[0].ticks[-1]["work"]:
                return
            time.sleep(0.05)
        raise AssertionError("no tick with work within 30 s")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_counter_steps_are_the_joules_of_the_record(tmp_path) -> None:
    bench = Bench(tmp_path)
    add = f"""
import time
for joules in (20, 5, 17):
    for zone in ("intel-rapl:0", "intel-rapl:2"):
        path = f"{bench.rapl}/{{zone}}/energy_uj"
        value = int(open(path).read()) + joules * 1000000
        import os
        open(path + "x", "w").write(str(value)); os.replace(path + "x", path)
    time.sleep(0.2)
"""
    assert bench.run(*python(add)).returncode == 0
    record = bench.record()
    assert record["energy"]["cpu"]["joules"] == pytest.approx(42.0), "psys is never added to packages"
    assert record["energy"]["cpu"]["class"] == "measured"
    assert record["energy"]["dram"]["joules"] == 0.0
    assert record["energy"]["gpu"]["joules"] is None and record["energy"]["gpu"]["reason"].startswith("no GPU")
    assert record["total_energy_joules"] == pytest.approx(42.0)
    assert record["energy"]["total"]["boundary"] == ["cpu", "dram"]
    assert record["joules_per_token"] is None and record["tokens_processed"] is None, "not counted is null, not 0"


@pytest.mark.parametrize(("code", "expected"), [("import sys; sys.exit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_exit_codes_are_passed_on_and_the_log_is_shown(tmp_path, code, expected) -> None:
    bench = Bench(tmp_path)
    result = bench.run(*python(f"print('the reason', flush=True); {code}"))
    assert result.returncode == expected
    assert "the reason" in result.stderr and "the reason" in (tmp_path / "log").read_text()
    assert not (tmp_path / "record.json").exists(), "a failed stage has no record at the output"
    (attempt,) = bench.ledgers()
    assert attempt.end["outcome"] == ("failed" if expected == 7 else "signal")


def test_sigterm_reaches_the_stage_which_ends_by_itself(tmp_path) -> None:
    bench = Bench(tmp_path)
    code = "import signal, sys, time; signal.signal(15, lambda *a: (print('saved', flush=True), sys.exit(143)));"
    process = bench.start(*python(code + WORKER.format(steps=1000, sleep=0.05)))
    bench.wait_for_tick(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert "saved" in (tmp_path / "log").read_text()
    (attempt,) = bench.ledgers()
    assert (attempt.end["outcome"], attempt.end["signal"]) == ("signal", 15)


def test_killed_attempts_stay_on_the_bill_and_the_stage_dies_with_its_meter(tmp_path) -> None:
    bench = Bench(tmp_path)
    code = WORKER.format(steps=1000, sleep=0.05)
    pids = []
    for _ in range(2):
        process = bench.start(*python("import os; print(os.getpid(), flush=True);" + code))
        bench.wait_for_tick(process)
        rapl_tree(bench.rapl, package_0=int((bench.rapl / "intel-rapl:0" / "energy_uj").read_text()) / 1e6 + 30)
        time.sleep(0.4)
        pids.append(int((tmp_path / "log").read_text().split()[0]))
        process.kill()
        process.wait()
    time.sleep(0.5)
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()
    killed = bench.ledgers()
    assert [a.end for a in killed] == [None, None]
    assert [a.last["joules"]["cpu"]["joules"] for a in killed] == pytest.approx([30.0, 30.0])
    # the command is part of the fingerprint by module and settings only, so this attempt joins the two before
    resumed = """
from workflow_scripts.progress import Progress
with Progress("loss") as progress:
    progress.resume(loss=10, steps=1)
    progress.add(loss=90)
"""
    assert bench.run(*python(resumed)).returncode == 0
    record = bench.record()
    assert [a["outcome"] for a in record["attempts"]] == ["lost", "lost", "completed"]
    assert [a["end_source"] for a in record["attempts"]] == ["ledger", "ledger", "meter"]
    assert record["total_energy_joules"] == pytest.approx(60.0)
    assert record["useful_j"] + record["wasted_j"] == pytest.approx(60.0)
    assert record["tokens_processed"] == 100
    assert record["joules_per_token"] == pytest.approx(0.6)


def test_work_that_was_not_resumed_is_waste(tmp_path) -> None:
    bench = Bench(tmp_path)
    grow = f"p='{bench.rapl}/intel-rapl:0/energy_uj'; import os\nopen(p+'x','w').write('50000000'); os.replace(p+'x', p)\n"
    assert bench.run(*python(grow + WORKER.format(steps=3, sleep=0.1) + "raise SystemExit(1)")).returncode == 1
    assert bench.run(*python(WORKER.format(steps=3, sleep=0.1))).returncode == 0
    record = bench.record()
    assert record["total_energy_joules"] == pytest.approx(40.0)
    assert record["wasted_j"] == pytest.approx(40.0) and record["useful_j"] == pytest.approx(0.0)


def test_a_stage_that_holds_the_interpreter_is_sampled_all_the_same(tmp_path) -> None:
    bench = Bench(tmp_path)
    assert bench.run(*python("import ctypes; ctypes.PyDLL(None).sleep(2)")).returncode == 0
    sampling = bench.record()["attempts"][0]["sampling"]
    assert sampling["max_gap_s"] < 2 * 0.05 + 0.2, "no gap of the order of the stall (2 s)"
    assert sampling["n"] >= 20


def test_processes_left_behind_are_ended_and_named(tmp_path) -> None:
    bench = Bench(tmp_path)
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True)"
    assert bench.run(*python(code)).returncode == 0
    pid = int((tmp_path / "log").read_text())
    time.sleep(0.2)
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()
    assert "the stage left processes behind; they were ended" in bench.record()["warnings"]


def test_a_second_meter_on_the_same_state_is_refused_with_the_owner(tmp_path) -> None:
    bench = Bench(tmp_path)
    process = bench.start(*python(WORKER.format(steps=1000, sleep=0.05)))
    bench.wait_for_tick(process)
    second = bench.run(*python("print(1)"))
    process.terminate()
    process.wait()
    assert second.returncode == 1
    assert f"is being worked on by process {process.pid} on" in second.stderr


def test_locks_of_the_dead_are_taken_over(tmp_path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    import socket

    (tmp_path / "lock.json").write_text(json.dumps({"host": socket.gethostname(), "pid": dead.pid}))
    lock = Lock(tmp_path)
    lock.acquire()
    lock.release()
    (tmp_path / "lock.json").write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    with pytest.raises(LockedError, match="process 1 on elsewhere"):
        Lock(tmp_path).acquire()
    os.utime(tmp_path / "lock.json", (0, 0))
    Lock(tmp_path).acquire()


def test_fingerprint_covers_module_settings_and_content_only(tmp_path) -> None:
    source = tmp_path / "a.json"
    source.write_text("1")
    command = ["python", "-m", "stage", "--settings", "{}", "--out", "x"]
    mark = fingerprint("s", command, [source])
    os.utime(source, (0, 0))
    assert fingerprint("s", [*command[:-1], "elsewhere", "--wandb", "name"], [source]) == mark
    assert fingerprint("s", ["python", "-m", "stage", "--settings", '{"a":1}'], [source]) != mark
    source.write_text("2")
    assert fingerprint("s", command, [source]) != mark


def test_a_foreign_or_newer_ledger_stops_the_meter_and_stays(tmp_path) -> None:
    folder = tmp_path / "attempts"
    folder.mkdir()
    line = {"event": "start", "schema": "energy-ledger/1", "stage": "other", "time": 0, "attempt": "a"}
    (folder / "x.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(LedgerError, match="a ledger of stage 'other' in the folder of 'work'"):
        read_attempts(folder, "work")
    (folder / "x.jsonl").write_text(json.dumps(line | {"schema": "energy-ledger/9"}) + "\n")
    with pytest.raises(LedgerError, match="schema 'energy-ledger/9', this program reads energy-ledger/1"):
        read_attempts(folder, "other")
    (folder / "x.jsonl").write_text(json.dumps(line) + '\n{"event": "tick", "elap')
    (attempt,) = read_attempts(folder, "other")
    assert attempt.cut_lines == 1 and attempt.end is None


@pytest.mark.parametrize("limit", [262143328850, 65532610987])
def test_rapl_wraps_of_two_packages(tmp_path, limit) -> None:
    root = rapl_tree(tmp_path / "rapl", package_0=0.0, package_1=0.0)
    for zone in root.iterdir():
        (zone / "max_energy_range_uj").write_text(str(limit))
    source = RaplSource(root)
    counters = dict.fromkeys(root.iterdir(), 0)
    step, ticks = limit // 3, 20
    for _ in range(ticks):
        for zone in counters:
            counters[zone] = (counters[zone] + step) % limit
            (zone / "energy_uj").write_text(str(counters[zone]))
        figure = source.read()["cpu"]
    assert figure.joules == pytest.approx(2 * ticks * step * 1e-6, rel=1e-9)
    assert figure.wraps >= 2


def test_command_line_faults() -> None:
    with pytest.raises(SystemExit):
        main(["--stage", "x"])
