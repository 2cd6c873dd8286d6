"""What a job may use and how it ends: CPUs, memory, time left, suspension; files and commands that say what a test wants."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from workflow_scripts.energy.attribution import allocated_cpus
from workflow_scripts.energy.child import why_killed
from workflow_scripts.energy.host import oom_kills
from workflow_scripts.energy.pauses import Pauses
from workflow_scripts.energy.sources.slurm import JobEnd, seconds_left

V2 = "0::/job/step\n"
V1 = "4:memory:/job/step\n3:cpu,cpuacct:/job/step\n0::/\n"


def tree(root: Path, groups: str, **files: str) -> Path:
    """A root with /proc/self/cgroup and files below /sys/fs/cgroup."""
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{n}": t for n, t in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(("said", "cpus"), [("4 2", 2), ("", 8)], ids=["squeue knows", "squeue does not"])
def test_the_first_task_of_an_array_has_no_variable_with_its_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, cpus: int
) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text(f'#!/bin/sh\n[ "$*" = "--noheader --jobs 7 --format=%C %D" ] && echo "{said}"\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert allocated_cpus({"SLURM_JOB_ID": "7"}, tmp_path) == cpus


@pytest.mark.parametrize(
    ("groups", "file", "text"),
    [
        (V2, "job/step/memory.events", "low 0\noom 3\noom_kill 2\n"),
        (V2, "memory.events", "oom_kill 2\n"),
        (V1, "memory/job/step/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
    ],
    ids=["v2", "v2 in a container", "v1"],
)
def test_processes_that_the_kernel_killed_for_memory(tmp_path: Path, groups: str, file: str, text: str) -> None:
    assert oom_kills(tree(tmp_path, groups)) is None
    assert oom_kills(tree(tmp_path, groups, **{file: text})) == 2


def outcome(number: int | None = None, code: int | None = None) -> dict[str, object]:
    name = "signal" if number else "failed" if code else "completed"
    return {"outcome": name, "signal": number, "exit_code": code}


def test_the_signal_and_out_of_memory_are_named() -> None:
    assert why_killed(outcome(signal.SIGKILL), None, 0, 0) == "the stage ended with SIGKILL"
    memory = why_killed(outcome(signal.SIGKILL), None, 1, 2) or ""
    assert "SIGKILL: out of memory, the kernel killed 1 process(es)" in memory and "raise mem_gb" in memory
    assert "exit code 1: out of memory" in (why_killed(outcome(code=1), None, 0, 1) or ""), "one of its workers was killed"
    assert why_killed(outcome(signal.SIGTERM), signal.SIGTERM, 0, 0) is None, "the meter has passed it on"
    assert why_killed(outcome(code=1), None, None, None) is None, "its own error, and the host does not say"
    assert why_killed(outcome(), None, 0, 1) is None


def test_time_left_is_by_the_controllers_clock() -> None:
    """The node's own clock is in neither figure."""
    config = "Configuration data as of 2031-05-06T07:00:10\nMaxArraySize = 1001\n"
    assert seconds_left(f"2031-05-06T07:02:00\n{config}") == 110.0
    assert seconds_left(f"2031-05-06T07:00:00\n{config}") == -10.0
    for end in ("NONE", "", "slurm_load_jobs error: Invalid job id specified"):
        assert seconds_left(f"{end}\n{config}") is None
    assert seconds_left("2031-05-06T07:02:00\n") is None, "the controller does not say its time"


class Stopped(Pauses):
    """43 s were lost, as the thread finds at its next beat after `lose`."""

    lose = threading.Event()

    def run(self) -> None:
        self.lose.wait()
        self._lost = 43.0
        self._beat.wait = lambda timeout: True  # type: ignore[method-assign]


def test_an_answer_that_does_not_come_is_given_up_with_the_process_that_is_asked(tmp_path: Path, monkeypatch) -> None:
    squeue, told = tmp_path / "squeue", tmp_path / "pid"
    squeue.write_text(f"#!/bin/sh\necho $$ > {told}.new; mv {told}.new {told}\nexec sleep 600\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    end = JobEnd(60.0)
    assert end.is_near(0.0) is None
    waited_until(told.exists)
    squeue_itself = psutil.Process(int(told.read_text()))
    assert squeue_itself.is_running()
    end.close()
    waited_until(lambda: ended(squeue_itself))


def ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def waited_until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_suspension_is_taken_out_and_stands_apart() -> None:
    pauses = Stopped()
    assert pauses.without(10.0, {"cpu": 100.0, "gpu": None}) == {"cpu": 100.0, "gpu": None}
    pauses.lose.set()
    pauses.join()
    assert pauses.without(55.0, {"cpu": 400.0, "gpu": None}) == {"cpu": 100.0, "gpu": None}
    assert pauses.without(56.0, {"cpu": 410.0, "gpu": 5.0}) == {"cpu": 110.0, "gpu": 5.0}
    cpu = {"joules": 410.0, "crosscheck": 820.0, "host_joules": None}
    line = {"elapsed_s": 56.0, "joules": {"cpu": cpu, "gpu": {"joules": None}}, "warnings": []}
    pauses.take_out(line)
    assert line["elapsed_s"] == 13.0 and line["joules"]["gpu"] == {"joules": None}
    assert line["joules"]["cpu"] == {"joules": 110.0, "crosscheck": pytest.approx(220.0), "host_joules": None}
    assert line["suspended"] == {"seconds": 43.0, "joules": {"cpu": 300.0}}
    assert line["warnings"] == ["the job was suspended for 43 s: this time and the 300 J meanwhile are not counted"]


def test_a_late_meter_alone_is_no_suspension() -> None:
    """A slow disk holds the meter up, while the stage works on."""
    pauses = Pauses()
    pauses.without(10.0, {"cpu": 100.0})
    assert pauses.without(55.0, {"cpu": 400.0}) == {"cpu": 400.0} and not pauses.seconds
