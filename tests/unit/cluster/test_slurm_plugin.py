"""What the slurm plugin is told of its jobs, by commands that answer what a file says."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import snakemake_executor_plugin_slurm as plugin

from workflow_scripts.cluster import slurm_plugin
from workflow_scripts.cluster.slurm_plugin import Watch, is_refusal, mend

SILENT = None  # an answer with exit code 1
LOGGER = logging.getLogger("test")


class Site:
    """`sacct` and `squeue` of a site, and a watch over jobs there."""

    def __init__(self, folder: Path, status: str) -> None:
        self.folder, self.watch = folder, Watch()
        query = plugin.query_job_status_sacct if status == "sacct" else plugin.query_job_status_squeue
        self.command = query("run-1")
        for tool in ("sacct", "squeue"):
            program = folder / tool
            program.write_text(f'#!/bin/sh\necho "$@" >>{folder}/asked-{tool}\ncat {folder}/{tool}.says\n')
            program.chmod(0o755)

    def states(self, sacct: str | None = "", squeue: str | None = "", **jobs: str) -> dict[str, str]:
        for tool, answer in (("sacct", sacct), ("squeue", squeue)):
            (self.folder / f"{tool}.says").unlink(missing_ok=True)
            if answer is not SILENT:
                (self.folder / f"{tool}.says").write_text(answer)
        self.watch.jobs = jobs or {"7": "train"}
        return asyncio.run(self.watch.states(self.command, LOGGER))[0]


@pytest.fixture(params=["sacct", "squeue"])
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Site(tmp_path, request.param)


@pytest.fixture
def accounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Site(tmp_path, "sacct")


def test_a_state_is_one_word(accounted: Site) -> None:
    assert accounted.states("7|CANCELLED by 0\n") == {"7": "CANCELLED"}
    assert accounted.states("7|CANCELLED+\n", SILENT) == {"7": "CANCELLED"}


def test_the_controllers_word_is_the_newer_one(accounted: Site) -> None:
    assert accounted.states("7|RUNNING\n", "7|COMPLETED\n") == {"7": "COMPLETED"}
    assert accounted.states(SILENT, "7|COMPLETED\n") == {"7": "COMPLETED"}, "accounting is away"
    assert accounted.states("7|COMPLETED\n", "") == {"7": "COMPLETED"}, "the controller has forgotten it"


def test_each_task_of_an_array_has_its_own_state(accounted: Site) -> None:
    """By raw ids the plugin reads the state of task 2, whose raw id is the array's, as that of both."""
    assert accounted.states("7_1|FAILED\n7_2|COMPLETED\n", "", **{"7_1": "a", "7_2": "a"}) == {
        "7_1": "FAILED",
        "7_2": "COMPLETED",
    }
    assert "--format=JobID,State" in (accounted.folder / "asked-sacct").read_text()
    assert "--array" in (accounted.folder / "asked-squeue").read_text()


def test_without_an_answer_no_job_is_forgotten_and_that_is_said_once(
    site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_plugin, "LOST_AFTER_S", 0.0)
    for _ in range(3):
        assert site.states(SILENT, SILENT) == {}, "no state: the plugin goes on waiting"
    assert caplog.text.count("squeue gives no answer (cat:") == 1
    site.states("7|RUNNING\n", "7|RUNNING\n")
    assert caplog.text.count("squeue answers again") == 1


@pytest.mark.parametrize("state", ["", "7|PREEMPTED\n", "7|NODE_FAIL\n"])
def test_a_job_that_nobody_knows_for_long_has_failed(
    site: Site, state: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = site.states(state, state)
    assert before == dict([state.strip().split("|")] if state else [])
    monkeypatch.setattr(slurm_plugin, "LOST_AFTER_S", 0.0)
    assert site.states(state, state) == {"7": "FAILED"}
    assert "Slurm job 7 (rule train) has not been in the queue" in caplog.text


def test_a_requeued_job_is_not_lost(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.states("7|PREEMPTED\n", "7|PREEMPTED\n")
    monkeypatch.setattr(slurm_plugin, "LOST_AFTER_S", 0.0)
    assert site.states("7|PREEMPTED\n", "7|PENDING\n") == {"7": "PENDING"}


def test_a_job_that_accounting_calls_running_and_the_controller_does_not_know_has_ended(
    accounted: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_plugin, "LOST_AFTER_S", 0.0)
    assert accounted.states("7|RUNNING\n", "") == {"7": "FAILED"}
    accounted.watch.elsewhere = True
    assert accounted.states("7|RUNNING\n", "") == {"7": "RUNNING"}, "it is another cluster's, which is not asked"


def test_out_of_memory_names_the_key_once(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        site.states("7|OUT_OF_MEMORY\n", "7|OUT_OF_MEMORY\n")
    assert caplog.text.count("Slurm job 7 (rule train) ran out of memory: raise mem_gb") == 1


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        (
            "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Job violates accounting/QOS policy",
            True,
        ),
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit", True),
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)", True),
        ("sbatch: error: Batch job submission failed: Requested node configuration is not available", False),
        ("The given account nobody appears to be invalid.", False),
    ],
)
def test_a_refusal_that_says_nothing_of_the_job_is_no_attempt(said: str, refused: bool) -> None:
    assert is_refusal(said) is refused


def test_states_may_be_asked_for_before_the_executor_is_whole() -> None:
    """Its thread is started before its __post_init__ has run; an error ends the thread, and the driver waits for ever."""
    mend()
    executor = plugin.Executor.__new__(plugin.Executor)
    executor.workflow = SimpleNamespace(executor_settings=SimpleNamespace(init_seconds_before_status_checks=1))
    executor._next_seconds_between_status_checks, executor.logger = None, logging.getLogger("plugin")

    async def asked() -> list[object]:
        return [job async for job in executor.check_active_jobs([])]

    assert asyncio.run(asked()) == []
