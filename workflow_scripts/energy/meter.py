"""The energy meter: runs a stage as its child process and writes what it cost.

    python -m workflow_scripts.energy.meter --stage NAME --role ROLE --record FILE --log FILE --state DIR
        --options JSON [--experiment NAME --pipeline NAME] [--codecarbon DIR] [--idle FILE]
        [--prerun-settings JSON] [--settings JSON] [--code DIGEST] [--input NAME=MANIFEST …] [--file FILE …] [--output FILE]
        [--part N-of-M | --parts RECORD …] -- COMMAND …

The stage is a process of its own, so that nothing it does can stop the sampling. Its output goes to the log file. SIGTERM
and SIGINT are passed on to it; the meter ends with its exit code (128 + n for signal n). What is known is on disk every
`flush_seconds`, in the attempt ledger of the state folder; the record is written when the stage has succeeded and adds up
all attempts. A meter that is killed takes its stage with it at once.

`--settings`, `--code`, `--input` and `--file` are what the result depends on; the state folder is named by them.
A stage whose work is split has one meter per part (--part) and one for the merge (--parts: the records of the parts, whose
state folder it shares); the merge's record adds up them and its own attempts, not those of merges with other settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import resource
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from workflow_scripts.artefact import ArtefactError, inherited, read_json, refusal, write_json
from workflow_scripts.energy.child import Child, exit_code, ignored, stage_environment, why_killed
from workflow_scripts.energy.display import Bar, append, say, tail
from workflow_scripts.energy.host import oom_kills, peak_rss_mb
from workflow_scripts.energy.ledger import (
    HOSTS,
    Attempt,
    LedgerError,
    LedgerWriter,
    at_one_merge,
    attempt_id,
    read_attempts,
    read_parts,
    total_joules,
)
from workflow_scripts.energy.live import LOADED, LiveEnergy, load_models, read_report
from workflow_scripts.energy.neighbours import Neighbours
from workflow_scripts.energy.pauses import Pauses
from workflow_scripts.energy.phases import Phases
from workflow_scripts.energy.provenance import bug_report, provenance
from workflow_scripts.energy.sampler import Sampler, Trace
from workflow_scripts.energy.sources.slurm import JobEnd
from workflow_scripts.energy.state import (
    BEAT_EVERY_S,
    HOSTS_VARIABLE,
    Identity,
    Lock,
    LockedError,
    NotSharedError,
    check_shared,
    files_of_parts,
    fingerprint_of_parts,
    host_identity,
)
from workflow_scripts.progress import STATE_VARIABLE, UNITS_VARIABLE

if TYPE_CHECKING:
    from workflow_scripts.energy.model import StageRecord

_SLURM_KEYS = ("SLURM_JOB_ID", "SLURM_JOB_PARTITION", "SLURM_RESTART_COUNT", "SLURM_JOB_GPUS", "SLURM_CLUSTER_NAME")
LOOK_EVERY_S = 5.0
_MOST_WARNINGS = 100  # a stage may report another number that is none at every tick


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the stage's exit code."""
    begun = time.monotonic()
    options, command = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        identity = Identity.of(options.settings, options.code, options.input, [*options.file, *files_of_parts(options.parts)])
        fingerprint = fingerprint_of_parts(options.parts) or identity.fingerprint(options.stage, options.experiment)
    except (OSError, ArtefactError) as error:
        say(f"{options.stage}: {error}")
        return 1
    stage_folder = Path(options.state) / options.stage / fingerprint
    folder = stage_folder / "parts" / options.part if options.part else stage_folder
    lock = Lock(folder)
    try:
        check_shared(Path(options.state))
        folder.mkdir(parents=True, exist_ok=True)
        waited = lock.wait(json.loads(options.options)["lock_wait_minutes"], options.stage)
    except (LockedError, NotSharedError, OSError) as error:
        say(f"{options.stage}: {error}")
        return 1
    try:
        check_prerun(options.idle, options.prerun_settings)
        return _Run(options, command, folder, provenance(fingerprint, identity), lock, begun + waited).run()
    except (LedgerError, ArtefactError, OSError) as error:
        unnamed = isinstance(error, OSError) and error.filename is None
        where = f" (while writing {options.record}, or the ledger in {folder})" if unnamed else ""
        say(f"{options.stage}: meter: {error}{where}")
        return 1
    finally:
        lock.release()


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the meter's own options from the stage's command after `--`."""
    parser = argparse.ArgumentParser(prog="workflow_scripts.energy.meter", allow_abbrev=False)
    for name in ("stage", "role", "record", "log", "state", "options"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("experiment", "pipeline", "codecarbon", "idle", "prerun-settings", "settings", "code", "output", "part"):
        parser.add_argument(f"--{name}")
    for name in ("input", "file", "parts"):
        parser.add_argument(f"--{name}", nargs="*", default=[])
    if "--" not in arguments:
        parser.error("the stage's command is missing: … -- COMMAND")
    split = arguments.index("--")
    command = arguments[split + 1 :]
    if not command:
        parser.error("the stage's command is empty")
    return parser.parse_args(arguments[:split]), command


def check_prerun(result: str | None, settings: str | None) -> None:
    """Raise OSError when the prerun's result was made with other settings than the campaign has now."""
    if result is None or settings is None:
        return
    made_with = read_json(Path(result)).get("settings")
    if made_with != json.loads(settings):
        raise OSError(f"`hardware` or `prerun` settings have changed since {result} was made: delete it and run again")


class _Run:
    """One attempt: start the stage, sample until it ends, write ledger and record."""

    def __init__(
        self,
        options: argparse.Namespace,
        command: list[str],
        folder: Path,
        known: dict[str, Any],
        lock: Lock,
        started: float,
    ) -> None:
        self.options, self.command, self.folder, self.known, self.lock = options, command, folder, known, lock
        self.energy: dict[str, Any] = json.loads(options.options)
        self.stage_folder = folder.parents[1] if options.part else folder
        self.started = started
        self.attempt = attempt_id()
        self.progress_file = folder / f"progress-{self.attempt}.json"
        self.energy_file = folder / f"energy-{self.attempt}.json"
        self.live = LiveEnergy(self.energy_file, self.attempt, self._attempts(), self.energy)
        self.trace_path = folder / "traces" / f"{self.attempt}.csv"
        self.child: Child | None = None
        self.pending: int | None = None
        self.work: dict[str, Any] | None = None
        self.hosts = Path(os.environ.get(HOSTS_VARIABLE) or Path(options.state) / "hosts")
        self.saved_joules: dict[str, float | None] | None = None
        self.warnings: list[str] = inherited(Path(name) for name in known["files"]).get("warnings", [])

    def run(self) -> int:
        """Returns the stage's exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._forward)
        self.neighbours, self.pauses, self.oom_kills = Neighbours(self.options.stage), Pauses(), oom_kills()
        self.idle = read_json(Path(self.options.idle)).get("idle") if self.options.idle else None  # the prerun's baseline
        here = self.idle is not None and self.idle.get("host") == socket.gethostname()
        self.sampler = Sampler(self.energy, self.hosts, self.idle["watts"] if self.idle is not None and here else None)
        environment, self.known["dropped_environment"] = stage_environment(os.environ, self._stage_variables())
        self.warnings += ignored(os.environ, self.known["dropped_environment"])
        self.ledger = LedgerWriter(self.folder / "attempts" / f"{self.attempt}.jsonl", self._start_line())
        self.trace = Trace(self.trace_path)
        self.live.write()
        log = Path(self.options.log)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self.begin = time.monotonic()
            self.startup_s = self.begin - self.started
            try:
                self.child = Child(self.command, output, environment | {"STAGE_BEGIN": repr(self.begin)})
            except OSError as error:
                say(f"{self.options.stage}: cannot start {self.command[0]}: {error.strerror}")
                return 127
        if self.pending is not None:
            self.child.send(self.pending)
        self.phases = Phases(self.begin)
        self.sampler.start(self.begin)
        threading.Thread(target=load_models, daemon=True).start()
        try:
            self._watch(self.child)
        except BaseException:
            self.child.stop()  # unmetered and, in a moment, unlocked: it must not go on
            raise
        outcome = self._finish(self.child)
        code = exit_code(outcome)
        record = self._record()
        self._say(record, outcome, log)
        if code == 0 and record.status != "complete":
            code = 1
        self.neighbours.leave()
        self.progress_file.unlink(missing_ok=True)
        self.live.remove()
        return code

    def _forward(self, signum: int, frame: FrameType | None) -> None:
        self.pending = signum
        if self.child is not None:
            self.child.send(signum)

    def _watch(self, child: Child) -> None:
        bar = Bar(self.options.stage)
        flushed = looked = beaten = self.begin
        period, flush = self.sampler.period, self.energy["flush_seconds"]
        look = flush if self.sampler.scope == "job" else LOOK_EVERY_S
        job_end = JobEnd(self.energy["seconds_before_limit"])
        due = self.begin + period  # on a grid, so that late wake-ups do not add up to missed samples
        while not child.wait(due - time.monotonic()):
            now = time.monotonic()
            due += period * max(1, math.ceil((now - due) / period))
            figures = self.sampler.sample(now)
            self._read_work(now, self.sampler.attributed(figures))
            self.trace.row(now - self.begin, figures, self._tokens(), self.phases.work_joules)
            bar.draw(self.work, now - self.begin)
            if now - looked >= look:  # before a line is written: a job's joules need its share
                looked = now
                self.sampler.read_share(child.pid, now)
                self.neighbours.look()
            if now - flushed >= flush:
                flushed = now
                line = self._line(now)
                self.ledger.append({"event": "tick", **line})
                self.live.write(line)
            if (left := job_end.is_near(now)) is not None:
                say(f"{self.options.stage}: Slurm ends this job in {left:.0f} s: the stage gets SIGTERM")
                child.warn()
            if now - beaten >= BEAT_EVERY_S:
                beaten = now
                if not self.lock.beat():
                    self.warnings.append("another process took this stage's lock over; the stage was stopped")
                    child.send(signal.SIGTERM)
        job_end.close()
        bar.clear()

    def _finish(self, child: Child) -> dict[str, Any]:
        """The stage has ended: last readings, then clean up, then the end line."""
        ended = time.monotonic()
        self.sampler.stop(ended)
        self.sampler.read_share(child.pid, ended)
        outcome = child.reap()
        if child.sweep():
            self.warnings.append("the stage left processes behind; they were ended")
        if reason := why_killed(outcome, child.received, self.oom_kills, oom_kills()):
            self.warnings.append(reason)
            append(Path(self.options.log), f"meter: {reason}")  # the log of a killed process may be empty
        self.neighbours.look()
        figures = self.sampler.figures(ended)
        self._read_work(ended, self.sampler.attributed(figures), final=True)
        self.trace.row(ended - self.begin, figures, self._tokens(), self.phases.work_joules)
        self.sampler.write_csv(self._codecarbon_csv(), ended - self.begin, self.options.stage)
        trace = self.trace.close()
        if self.trace.lost_rows:
            self.warnings.append(f"{self.trace.lost_rows} row(s) of the power trace could not be written: the disk was full")
        if self.ledger.lost_lines:
            self.warnings.append(f"{self.ledger.lost_lines} ledger line(s) could not be written: the disk was full")
        if self.live.lost:
            self.warnings.append(
                f"the stage was not told its energy {self.live.lost} time(s): {self.energy_file} was not written"
            )
        line = self._line(ended, final=True) | outcome | {"trace": str(trace), "devices": self.sampler.devices()}
        self.ledger.append({"event": "end", **line})
        self.ledger.close()
        return outcome

    # ---- what is read

    def _read_work(self, now: float, joules: dict[str, float | None], final: bool = False) -> None:
        before, joules = (self.work or {}).get("durable"), self.pauses.without(now, joules)
        self.phases.skip(self.pauses.last)
        report, dropped = read_report(self.progress_file) if final or LOADED.is_set() else (None, [])
        self.work = report or self.work
        self.warnings += [text for text in dropped if text not in self.warnings and len(self.warnings) < _MOST_WARNINGS]
        if self.work and self.work["durable"] not in (before, self.work["resumed"]):
            self.saved_joules = joules
        self.phases.tick(now, total_joules(joules, self.energy["total_energy_policy"]), self.work, final)

    def _tokens(self) -> int | None:
        return self.work["work"].get(self.work["unit"]) if self.work else None

    def _attempts(self) -> list[Attempt]:
        """Attempts at the stage so far, oldest first; of a merge those at this very one."""
        found = read_attempts(self.folder / "attempts", self.options.stage)
        return at_one_merge(found, self.known) if self.options.parts else found

    # ---- what is written

    def _start_line(self) -> dict[str, Any]:
        return {
            "stage": self.options.stage,
            "role": self.options.role,
            "part": self.options.part,
            "parts": len(self.options.parts) or None,
            "experiment": self.options.experiment,
            "pipeline": self.options.pipeline,
            "energy": self.energy,
            "scope": self.sampler.scope,
            "idle": self.idle,
            "attempt": self.attempt,
            "number": len(list((self.folder / "attempts").glob("*.jsonl"))),
            "host": socket.gethostname(),
            "power_model": dataclasses.asdict(self.sampler.model) if self.sampler.model else None,
            "pid": os.getpid(),
            "slurm": {key: os.environ[key] for key in _SLURM_KEYS if key in os.environ},
            "devices": self.sampler.devices(),
            "trace": str(self.trace_path),
            "record": self.options.record,
            "output": self.options.output,
            "command": self.command,
            "provenance": self.known,
            "time": time.time(),  # last: the stage starts right after, and its wall clock is set against this
        }

    def _line(self, now: float, final: bool = False) -> dict[str, Any]:
        line = self.sampler.line(now, self.begin, final)
        self.pauses.take_out(line)
        line["warnings"] += [*self.warnings, *self.neighbours.warnings(), *(self.work or {}).get("warnings", [])]
        return line | {"work": self.work, "saved_joules": self.saved_joules, "phases": self.phases.content()}

    def _stage_variables(self) -> dict[str, str]:
        return {
            STATE_VARIABLE: str(self.folder.absolute()),
            UNITS_VARIABLE: str((self.stage_folder / "units").absolute()),
            "STAGE_PROGRESS": str(self.progress_file.absolute()),
            "STAGE_ENERGY": str(self.energy_file.absolute()),
            "METER_STAGE": self.options.stage,
            "METER_ATTEMPT": self.attempt,
            "METER_HOST": host_identity(),
            HOSTS_VARIABLE: str(self.hosts.absolute()),
            "METER_LEDGERS": str((self.folder / "attempts" / HOSTS).absolute()),
            "METER_OPTIONS": self.options.options,
            "PYTHONUNBUFFERED": "1",
        }

    def _codecarbon_csv(self) -> Path:
        folder = Path(self.options.codecarbon) if self.options.codecarbon else self.folder / "codecarbon"
        number = len(list((self.folder / "attempts").glob("*.jsonl")))
        name = f"{self.options.stage}.{self.options.part}" if self.options.part else self.options.stage
        path = folder / (f"{name}.csv" if number == 1 else f"{name}.attempt{number}.csv")
        path.unlink(missing_ok=True)
        return path

    def _record(self) -> StageRecord:
        from workflow_scripts.energy.record import build_record  # here, so that no stage waits for it

        if not self.ledger.started:
            reason = refusal(self.folder) or "its ledger was refused"
            raise LedgerError(
                f"{reason}: {self.folder}: nothing of this attempt could be written, so there is no record: run again"
            )
        usage = resource.getrusage(resource.RUSAGE_SELF)
        overhead = {
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "max_rss_mb": peak_rss_mb(),
            "startup_seconds": self.startup_s,
        }
        parts = [] if self.options.part else read_parts(self.folder, self.options.stage)
        record = build_record(self._attempts(), overhead, parts)
        content = record.model_dump(mode="json", by_alias=True)
        if record.status == "complete":
            write_json(Path(self.options.record), content)
        try:
            write_json(self.folder / "record.json", content)
        except OSError as error:
            say(f"{self.options.stage}: no copy of the record in the state folder: {error}")
        return record

    def _say(self, record: StageRecord, outcome: dict[str, Any], log: Path) -> None:
        mine = next(attempt for attempt in record.attempts if attempt.id == self.attempt)
        known = mine.total_j is not None and record.energy.total.joules is not None
        energy = f"{mine.total_j:.0f} J ({record.energy.total.energy_class})" if known else "energy unavailable"
        seconds = mine.duration_seconds
        name = " ".join(word for word in (self.options.stage, self.options.experiment, self.options.part) if word)
        say(f"{name}: {outcome['outcome']} after {seconds:.1f} s, {energy}")
        if outcome["outcome"] != "completed":
            say("\n".join([f"--- end of {log}", *tail(log), "---"]))
            if reason := refusal(log.parent):
                say(f"error: {reason}: {log.parent}: the log may lack the stage's last words")
            say(bug_report(name, record.provenance))
        elif record.status != "complete":
            reason = refusal(self.folder) or "the ledger's last line is missing"
            say(f"error: {reason}: {self.folder}: without this attempt's end there is no record: run again")


if __name__ == "__main__":
    sys.exit(main())
