"""What leans on the internals of the slurm executor plugin (2.8.0), and nothing else does: look here first when it changes.

The plugin forgets its jobs when Slurm does not answer, waits for ever for a state that it does not know (`CANCELLED by 0`),
reads the state of one array task as that of all, and takes a refused submission for a failed job. docs/slurm_plugin.md has
the faults as they go to its authors, with the diff; what stands here is needed until a version has it.
"""

from __future__ import annotations

import asyncio
import shlex
import threading
import time
from collections.abc import AsyncIterator, Mapping
from logging import Logger
from typing import Any

import snakemake_executor_plugin_slurm as plugin

from workflow_scripts.cluster.site import NO_ANSWER, QUEUE_FULL

ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL", "ERROR"}
ALIVE = {
    *("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"),
    *("REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"),
}
LOST_AFTER_S = 300.0  # accounting may lag behind the controller, and a job that is requeued has no state that says so
SAY_EVERY_S = 300.0
ASK_FOR_S = 60.0
SUBMIT_AGAIN_S = 30.0


def mend() -> None:
    """Let the plugin survive what it does not; once per process."""
    executor = plugin.Executor
    if hasattr(executor, "watch"):
        return
    watch, check, report = Watch(), executor.check_active_jobs, executor._report_job_error_threadsafe

    async def check_active_jobs(self: Any, active_jobs: list[Any]) -> AsyncIterator[Any]:
        watch.jobs = {str(job.external_jobid): job.job.name for job in active_jobs}
        watch.elsewhere = bool(getattr(self, "_submitted_job_clusters", ()))  # asked for the first time before it is made
        async for job in check(self, active_jobs):
            yield job

    def report_job_error(self: Any, job_info: Any, msg: str) -> None:
        if not is_refusal(msg):
            report(self, job_info, msg)
            return
        reason = next((line.strip() for line in msg.splitlines() if is_refusal(line)), msg)
        self.logger.warning(f"Rule {job_info.job.name} is submitted again in {SUBMIT_AGAIN_S:.0f} s: {reason}")
        again = threading.Timer(SUBMIT_AGAIN_S, _submit, (self, job_info.job))
        again.daemon = True
        again.start()

    executor.watch = watch
    executor.check_active_jobs = check_active_jobs
    executor._report_job_error_threadsafe = report_job_error
    plugin.query_job_status = watch.states


def is_refusal(message: str) -> bool:
    """Whether a failed submission says nothing of the job: Slurm did not answer, or the user's queue was full."""
    return bool(NO_ANSWER.search(message) or QUEUE_FULL.search(message))


def _submit(executor: Any, job: Any) -> None:
    if executor.wait:  # else Snakemake has ended meanwhile
        executor._job_submission_executor.submit(executor.run_job, job)


class Watch:
    """The states of the jobs that Snakemake waits for, as the controller and, where the site has one, accounting say them.

    `jobs` are the Slurm ids with the rule of each; `elsewhere` says that they are on clusters of which the controller here
    knows nothing.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, str] = {}
        self.elsewhere = False
        self._unanswered: dict[str, float] = {}  # tool: when its silence was last said
        self._doubtful: dict[str, float] = {}  # job: since when neither alive nor ended
        self._told: set[str] = set()

    async def states(self, command: str, logger: Logger) -> tuple[dict[str, str], float]:
        """States by job id, and the seconds that it took; `command` is the plugin's own query.

        Both sources are asked, the newer word (the controller's) counts. Without any answer no job has a state, so that the
        plugin goes on waiting for all of them.
        """
        began = time.monotonic()
        accounting, run = command.startswith("sacct"), shlex.split(command)[-1]
        accounted: dict[str, str] | None = {}
        queued: dict[str, str] | None = None
        if accounting:
            accounted = await self._ask(
                command.replace("JobIdRaw", "JobID"), logger
            )  # the raw id does not name an array's task
        if not self.elsewhere:
            queued = await self._ask(f"{plugin.query_job_status_squeue(run)} --array", logger)
        found = {job: self._state(job, accounted, queued, logger) for job in self.jobs}
        return {job: state for job, state in found.items() if state is not None}, time.monotonic() - began

    def _state(
        self, job: str, accounted: Mapping[str, str] | None, queued: Mapping[str, str] | None, logger: Logger
    ) -> str | None:
        """A job's state; None where nobody knows it now. One that nobody knows for long has ended."""
        answers = [answer[job] for answer in (queued, accounted) if answer and job in answer]
        state = answers[0] if answers else None
        if state == "OUT_OF_MEMORY" and job not in self._told:
            self._told.add(job)
            logger.warning(
                f"Slurm job {job} (rule {self.jobs[job]}) ran out of memory: raise mem_gb of its family in the profile's site "
                "block (without a profile: its resource mem_mb)"
            )
        unclear = accounted is None or queued is None  # who does not answer may know it
        if unclear or state in ENDED or (job in (queued or {}) and state in ALIVE):
            self._doubtful.pop(job, None)
            return state
        since = self._doubtful.setdefault(job, time.monotonic())
        if time.monotonic() - since < LOST_AFTER_S:
            return state
        logger.error(
            f"Slurm job {job} (rule {self.jobs[job]}) has not been in the queue for {LOST_AFTER_S / 60:.0f} minutes, and "
            f"nothing says how it ended (state: {state or 'none'}): it counts as failed"
        )
        return "FAILED"

    async def _ask(self, command: str, logger: Logger) -> dict[str, str] | None:
        """States by job id; None without an answer, which is said at once and then every few minutes."""
        tool = command.split()[0]
        out, answered = b"", False
        try:
            process = await asyncio.create_subprocess_exec(
                *shlex.split(command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
            try:
                out, err = await asyncio.wait_for(process.communicate(), ASK_FOR_S)
                answered = process.returncode == 0
                reason = " ".join(err.decode(errors="replace").split()) or f"exit code {process.returncode}"
            except TimeoutError:
                process.kill()
                reason = f"nothing within {ASK_FOR_S:.0f} s"
        except OSError as error:
            reason = str(error)
        now = time.monotonic()
        if not answered:
            if now - self._unanswered.get(tool, -SAY_EVERY_S) >= SAY_EVERY_S:
                self._unanswered[tool] = now
                logger.warning(f"{tool} gives no answer ({reason}): the states of {len(self.jobs)} job(s) are asked for again")
            return None
        if self._unanswered.pop(tool, None) is not None:
            logger.warning(f"{tool} answers again")
        return {job.strip(): word(state) for line in out.decode().splitlines() for job, _, state in [line.partition("|")]}


def word(state: str) -> str:
    """A state in one word: `CANCELLED by 1000` is CANCELLED."""
    return (state.split() or [""])[0].rstrip("+")
