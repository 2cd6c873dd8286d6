"""Exactly once: whose state folder it is, who works in it, and how parts of a stage share it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest

from tests.helpers.meter_bench import WORKER, Bench, python
from workflow_scripts.accounting.bill import bill
from workflow_scripts.cluster.site import announce, hint_after_failure
from workflow_scripts.energy import state
from workflow_scripts.energy.recover import recover
from workflow_scripts.energy.state import Identity, Lock, LockedError, NotSharedError, check_shared


def test_a_second_meter_on_the_same_state_is_refused_with_the_owner(tmp_path) -> None:
    bench = Bench(tmp_path, lock_wait_minutes=0)
    process = bench.start(*python(WORKER.format(steps=1000, sleep=0.05)))
    bench.wait_for_tick(process)
    second = bench.run(*python("print(1)"))
    process.terminate()
    process.wait()
    assert second.returncode == 1
    assert f"is being worked on by process {process.pid} on" in second.stderr


def test_a_second_meter_waits_for_the_first_and_says_for_whom(tmp_path) -> None:
    bench = Bench(tmp_path)
    process = bench.start(*python(WORKER.format(steps=60, sleep=0.05)))
    bench.wait_for_tick(process)
    second = bench.run(*python("print(1)"))
    assert process.poll() == 0, "the second ran while the first did"
    assert second.returncode == 0 and f"waiting up to 720 min: {tmp_path}/state/work/" in second.stderr
    assert f"process {process.pid} on {socket.gethostname()}" in second.stderr
    first, last = bench.record()["attempts"]
    assert last["start_time"] >= first["end_time"] and bench.record()["overhead"]["startup_seconds"] < 2


def owner(**changes) -> str:
    """The content of a lock held by this process, with changes."""
    boot = open("/proc/sys/kernel/random/boot_id").read().strip()  # noqa: SIM115, PTH123
    ticks = int(open(f"/proc/{os.getpid()}/stat").read().rpartition(")")[2].split()[19])  # noqa: SIM115, PTH123
    mine = {"host": socket.gethostname(), "boot": boot, "pid": os.getpid(), "started": ticks, "job": None}
    return json.dumps(mine | changes)


def test_a_living_owner_on_this_host_is_trusted_however_long_it_was_silent(tmp_path) -> None:
    (tmp_path / "lock.json").write_text(owner())
    os.utime(tmp_path / "lock.json", (0, 0))
    with pytest.raises(LockedError, match=f"process {os.getpid()} on"):
        Lock(tmp_path).acquire()


def test_a_dead_owner_a_reused_process_number_and_a_silent_host_lose_the_lock(tmp_path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    for content in (owner(pid=dead.pid), owner(started=1)):
        (tmp_path / "lock.json").write_text(content)
        lock = Lock(tmp_path)
        lock.acquire()
        lock.release()
        assert list(tmp_path.iterdir()) == []
    for content in (owner(host="elsewhere"), owner(boot="before the reboot")):
        (tmp_path / "lock.json").write_text(content)
        with pytest.raises(LockedError, match=f"process {os.getpid()} on"):
            Lock(tmp_path).acquire()  # it may live
        os.utime(tmp_path / "lock.json", (0, 0))
        lock = Lock(tmp_path)
        lock.acquire()
        lock.release()


def test_a_lock_cut_while_it_was_written_is_taken_over_when_it_is_old(tmp_path) -> None:
    (tmp_path / "lock.json").write_text('{"host"')
    with pytest.raises(LockedError):
        Lock(tmp_path).acquire()
    os.utime(tmp_path / "lock.json", (0, 0))
    Lock(tmp_path).acquire()


def test_a_meter_that_lost_its_lock_stops_its_stage(tmp_path) -> None:
    bench = Bench(tmp_path)
    code = "import workflow_scripts.energy.state as s; s.BEAT_EVERY_S = 0.2; import workflow_scripts.energy.meter as m; "
    code += "m.BEAT_EVERY_S = 0.2; import sys; sys.exit(m.main())"
    command = bench.command(*python(WORKER.format(steps=1000, sleep=0.05)))
    process = subprocess.Popen([command[0], "-c", code, *command[3:]], stderr=subprocess.PIPE, text=True)
    bench.wait_for_tick(process)
    (lock,) = tmp_path.glob("state/work/*/lock.json")
    lock.with_name("new").write_text(owner())
    lock.with_name("new").replace(lock)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert lock.read_text() == owner(), "it is the new owner's"
    (attempt,) = bench.ledgers()
    assert "another process took this stage's lock over; the stage was stopped" in attempt.end["warnings"]


def test_fingerprint_covers_settings_code_and_content_but_not_times_and_folders(tmp_path) -> None:
    source = tmp_path / "a.json"
    source.write_text("1")

    def mark(settings: str = "{}", code: str = "c", stage: str = "s", experiment: str | None = None, path=source) -> str:
        return Identity.of(settings, code, [f"corpus={path}"], []).fingerprint(stage, experiment)

    first = mark()
    os.utime(source, (0, 0))
    (tmp_path / "moved").mkdir()
    shutil.copy(source, tmp_path / "moved")
    assert mark() == mark(path=tmp_path / "moved" / "a.json") == first
    others = [mark('{"a":1}'), mark(code="d"), mark(stage="other"), mark(experiment="experiment")]
    source.write_text("2")
    assert len({first, mark(), *others}) == 6


PART = """
import sys, time
from workflow_scripts.progress import Progress, units_dir
with Progress("loss") as progress:
    for _ in range({steps}):
        progress.add(loss=10, steps=1)
        time.sleep(0.02)
    progress.saved()
    (units_dir() / "{name}").write_text("made")
    {then}
"""
MERGE = """
from workflow_scripts.progress import Progress, units_dir
with Progress("loss") as progress:
    progress.resume(loss=10 * len(list(units_dir().iterdir())))
"""


def run_split(bench: Bench, *arguments: str, code: str) -> int:
    command = bench.command(*python(code))
    split = command.index("--")
    return subprocess.run([*command[:split], *arguments, *command[split:]], check=False, capture_output=True).returncode


def test_the_record_of_a_split_stage_adds_up_all_attempts_at_all_parts(tmp_path) -> None:
    bench = Bench(tmp_path)
    killed = PART.format(steps=20, name="a", then="time.sleep(0.3); raise SystemExit(9)")
    assert run_split(bench, "--part", "1-of-3", code=killed) == 9
    for number in (1, 2):
        code = PART.format(steps=5 * number, name=number, then="pass")
        assert run_split(bench, "--part", f"{number}-of-2", code=code) == 0
    parts = [str(path) for path in sorted(tmp_path.glob("state/work/*/parts/*-of-2/record.json"))]
    assert run_split(bench, "--parts", *parts, code=MERGE) == 0
    record = bench.record()
    assert [a["part"] for a in record["attempts"]] == ["1-of-3", "1-of-2", "2-of-2", None]
    assert record["parts"] == 2 and record["status"] == "complete"
    assert record["tokens_processed"] == 30, "the merge counted every unit once"
    assert record["total_energy_joules"] == pytest.approx(sum(a["total_j"] for a in record["attempts"]))
    assert record["duration_seconds"] == pytest.approx(sum(a["duration_seconds"] for a in record["attempts"]))
    span = max(a["end_time"] for a in record["attempts"]) - min(a["start_time"] for a in record["attempts"])
    assert record["span_seconds"] == pytest.approx(span) and span > record["duration_seconds"]
    assert len(list(tmp_path.glob("state/work/*"))) == 1, "one state for all parts of a stage"


def test_another_merge_of_the_same_parts_has_its_own_joules(tmp_path) -> None:
    bench = Bench(tmp_path)
    assert run_split(bench, "--part", "1-of-1", code=PART.format(steps=5, name="a", then="pass")) == 0
    part = str(next(tmp_path.glob("state/*/*/parts/1-of-1/record.json")))
    merges = [("1", MERGE), ("2", MERGE), ("1", MERGE)]
    found = []
    for least, code in merges:
        arguments = ("--settings", json.dumps({"filtering": {"min_length": least}}), "--parts", part)
        assert run_split(bench, *arguments, code=code) == 0
        found.append(bench.record())
    names = [[attempt["part"] for attempt in record["attempts"]] for record in found]
    assert names == [["1-of-1", None], ["1-of-1", None], ["1-of-1", None, None]], "one of equal settings adds up"
    for record in found:
        assert record["total_energy_joules"] == pytest.approx(sum(a["total_j"] for a in record["attempts"]))
    (folder,) = tmp_path.glob("state/*/*")
    recovered = recover(folder)
    assert [attempt.id for attempt in recovered.attempts] == [attempt["id"] for attempt in found[-1]["attempts"]]
    assert len(bill(tmp_path).versions) == 1 and bill(tmp_path).versions[0].attempts == 4, "the bill counts the part once"


COUNTING = """
import json, os, time
from pathlib import Path
from workflow_scripts.progress import Progress, units_dir

def count(to, until):  # sets the counter and waits until the meter has told of it for a while
    if to:
        Path({zone!r}).write_text(to)
    begun = time.time()
    told = dict(time=0, joules=None)
    while time.time() < begun + 60 and (told["time"] < begun + 0.5 or (told["joules"] or 0) < until):
        time.sleep(0.02)
        told = json.loads(Path(os.environ["STAGE_ENERGY"]).read_text())

with Progress("loss") as progress:
    progress.add(loss=50, steps=5)
    count("30000000", 20)
    progress.saved()
    (units_dir() / "a").write_text("made")
    count(None, 20)
    count("60000000", 50)
    raise SystemExit(9)
"""


def test_what_a_killed_part_had_saved_is_useful_once_the_parts_are_merged(tmp_path) -> None:
    bench = Bench(tmp_path)
    zone = bench.rapl / "intel-rapl:0" / "energy_uj"
    code = COUNTING.format(zone=str(zone))
    assert run_split(bench, "--part", "1-of-2", code=code) == 9
    (part,) = tmp_path.glob("state/work/*/parts/*/record.json")
    assert run_split(bench, "--parts", str(part), str(part), code=MERGE) == 0
    first = bench.record()["attempts"][0]
    assert first["total_j"] == pytest.approx(50) and first["useful_j"] == pytest.approx(20), "10 J at the start, 30 J saved"
    assert first["wasted_j"] == pytest.approx(30)


def test_lock_wait_is_bounded(tmp_path) -> None:
    (tmp_path / "lock.json").write_text(owner())
    begun = time.monotonic()
    with pytest.raises(LockedError, match=re.escape(str(tmp_path))):
        Lock(tmp_path).wait(0.01, "work")
    assert 0.5 < time.monotonic() - begun < 10


def test_a_folder_that_is_not_shared_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(state, "_VISIBLE_WITHIN_S", 0.1)
    check_shared(tmp_path / "results" / "state")  # no driver has announced itself
    monkeypatch.setenv(state.TOKEN_VARIABLE, "")
    announce(str(tmp_path / "results"))
    check_shared(tmp_path / "results" / "state")
    with pytest.raises(NotSharedError, match="output.root: .*elsewhere on .* is not the folder that Snakemake writes to"):
        check_shared(tmp_path / "elsewhere" / "state")


def test_a_late_file_system_is_waited_for(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(state.TOKEN_VARIABLE, "")
    announce(str(tmp_path))
    (token,) = (tmp_path / "state" / state.TOKEN_FOLDER).iterdir()
    hidden = token.rename(tmp_path / "hidden")
    threading.Timer(0.5, hidden.rename, [token]).start()
    check_shared(tmp_path / "state")


def test_failed_jobs_without_a_log_are_explained(tmp_path) -> None:
    assert "perhaps the working directory is not shared" in (hint_after_failure(tmp_path) or "")
    (tmp_path / "rule").mkdir()
    (tmp_path / "rule" / "1.log").touch()
    assert hint_after_failure(tmp_path) is None
