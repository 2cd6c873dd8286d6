"""What `make demo` and `make study` print of Snakemake: the whole DAG as one bar with the time left, and what went wrong.

A logger plugin of Snakemake (`snakemake --logger progress`), which finds it by its name where this folder is on PYTHONPATH. The
lines of finished stages are the meters' own.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter, defaultdict
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from workflow_scripts.energy.display import WIPE

WIDTH = 24
LEAST_SEEN = 3  # jobs that must have ended before a time is said


class LogHandler(LogHandlerBase):
    """Prints a bar when a job has ended, and errors; everything else stays in Snakemake's log file."""

    writes_to_stream, writes_to_file, has_filter, has_formatter, needs_rulegraph = True, False, True, True, False

    def __post_init__(self) -> None:
        """Nothing is known of the jobs yet."""
        self._begun = time.monotonic()
        self._left: Counter[str] = Counter()
        self._rules: dict[int, str] = {}
        self._started: dict[int, float] = {}
        self._seconds: defaultdict[str, list[float]] = defaultdict(list)

    def emit(self, record: logging.LogRecord) -> None:
        """Take an event of Snakemake's."""
        event, now = getattr(record, "event", None), time.monotonic()
        if event == LogEvent.RUN_INFO:
            self._left = Counter({rule: count for rule, count in vars(record)["stats"].items() if rule != "total"})
        elif event == LogEvent.JOB_INFO:
            self._rules[vars(record)["jobid"]] = vars(record)["rule_name"]
        elif event == LogEvent.JOB_STARTED:
            self._started |= dict.fromkeys(vars(record)["jobs"], now)
        elif event == LogEvent.JOB_FINISHED:
            self._ended(vars(record)["job_id"], now)
        elif event == LogEvent.PROGRESS:
            self._say(self._bar(vars(record)["done"], vars(record)["total"], now))
        elif event == LogEvent.JOB_ERROR:
            self._say(failure(vars(record)))
        elif event in (LogEvent.ERROR, LogEvent.GROUP_ERROR):
            if vars(record).get("exception") != "RuleException":  # that a job's command failed is said by its job
                self._say(record.getMessage())
        elif event is None and (record.levelno >= logging.WARNING or record.getMessage().startswith("Nothing to be done")):
            self._say(record.getMessage())

    def _ended(self, job: int, now: float) -> None:
        rule = self._rules.get(job, "")
        self._left[rule] -= 1
        if job in self._started:
            self._seconds[rule].append(now - self._started[job])

    def _bar(self, done: int, total: int, now: float) -> str:
        full = WIDTH * done // total
        words = [f"{done} of {total} jobs", f"{spoken(now - self._begun)} so far"]
        if (left := self.seconds_left()) is not None and done < total:
            words.append(f"about {spoken(left)} left")
        return f"[{'#' * full}{'.' * (WIDTH - full)}] {', '.join(words)}"

    def seconds_left(self) -> float | None:
        """Jobs that are left by the mean time of those of their rule, of all where none of them has ended [s]."""
        every = [seconds for each in self._seconds.values() for seconds in each]
        if len(every) < LEAST_SEEN:
            return None
        means = {rule: sum(each) / len(each) for rule, each in self._seconds.items()}
        return sum(count * means.get(rule, sum(every) / len(every)) for rule, count in self._left.items() if count > 0)

    def _say(self, text: str) -> None:
        if text:
            print(f"{WIPE if sys.stderr.isatty() else ''}{text}", file=sys.stderr, flush=True)


def failure(job: dict[str, Any]) -> str:
    """What failed, and where its words are."""
    logs = ", ".join(job["log"] or []) or "above"
    return f"FAILED: {job['rule_name']}: see {logs}. What is finished is kept: correct it and run the same command again."


def spoken(seconds: float) -> str:
    """A time as a person says it."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
