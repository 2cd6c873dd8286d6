"""What a stage tells about its work while it runs, and where it keeps what must survive a kill.

The meter starts a stage with these environment variables: STAGE_STATE_DIR, a folder that outlives failures and belongs to
exactly this stage with these settings and inputs, and STAGE_PROGRESS, a file that the stage replaces as it works and the
meter reads at every tick, so that tokens and joules in a record are of the same instant. STAGE_UNITS_DIR is a folder that all
parts of a stage share. STAGE_ENERGY is a file that the meter replaces on every flush and a stage may read (`energy_so_far`):

    {"joules": float | null, "joules_by_component": {"gpu": float, ...}, "reason": str | null, "time": unix seconds,
     "every_seconds": seconds between flushes}

with the attributed joules of all attempts of the stage so far, null with a reason when there is no figure. Without a meter (a
stage started by hand) the state folder is one for temporary files, named by what the stage reads (stages.runtime.common),
progress goes to standard output only, and the energy is not known.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

STATE_VARIABLE = "STAGE_STATE_DIR"
UNITS_VARIABLE = "STAGE_UNITS_DIR"
TOKEN_TYPES = ("loss", "input", "generated", "padded", "discarded")
LARGEST_REPORT = 1 << 17  # bytes of a progress file; a larger one is not read
_WRITE_EVERY_S = 0.2
_PRINT_EVERY_S = 5.0
_MARKS = 32  # of the newest phases in the file; the meter reads it several times a second


def state_dir() -> Path:
    """Folder for checkpoints and finished shards; exists."""
    path = Path(os.environ.get(STATE_VARIABLE) or _temporary())
    path.mkdir(parents=True, exist_ok=True)
    return path


@cache
def _temporary() -> str:
    """One folder for all that this process does without a meter."""
    return tempfile.mkdtemp(prefix="stage-state-")


def units_dir() -> Path:
    """Folder of the finished units of a stage, shared by its parts; exists."""
    configured = os.environ.get(UNITS_VARIABLE)
    path = Path(configured) if configured else state_dir() / "units"
    path.mkdir(parents=True, exist_ok=True)
    return path


@dataclass(frozen=True)
class EnergySoFar:
    """Attributed energy of the stage so far [J], of all its attempts: total and by component, as known at `time` [unix s].

    `joules` is None with a `reason` when there is no figure. `work_joules` are those of the work phase of this attempt on the
    meter's host. The meter renews it `every_seconds`. `read` is False where the meter's file could not be read.
    """

    joules: float | None
    joules_by_component: dict[str, float]
    reason: str | None
    time: float
    every_seconds: float
    work_joules: float = 0.0
    read: bool = True


def energy_so_far() -> EnergySoFar:
    """What the meter says of this stage's energy; never raises."""
    path = os.environ.get("STAGE_ENERGY")
    if not path:
        return EnergySoFar(None, {}, "the stage runs without the energy meter", time.time(), 0.0)
    try:
        return EnergySoFar(**json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        return EnergySoFar(None, {}, f"{path} cannot be read ({error})", time.time(), _flush_seconds(), read=False)


def attempt_seconds() -> float | None:
    """Seconds since the meter started this stage, the clock of its power trace; None without a meter."""
    begin = os.environ.get("STAGE_BEGIN")
    return time.monotonic() - float(begin) if begin else None


def _flush_seconds() -> float:
    """`energy.flush_seconds`, from the options that the meter started this stage with; 0 where they do not say."""
    try:
        return float(json.loads(os.environ["METER_OPTIONS"])["flush_seconds"])
    except (KeyError, ValueError, TypeError):
        return 0.0


class Progress:
    """Typed counts of a stage's work.

    `unit` is the token type that `tokens_processed` counts: one of TOKEN_TYPES. Counts are cumulative over the whole
    stage; work that a resumed attempt found done is set with `resume`, so that an attempt knows what it added itself.
    """

    def __init__(self, unit: str, total: int | None = None, phase: str = "work") -> None:
        if unit not in TOKEN_TYPES:
            raise ValueError(f"unit = {unit!r} is not one of {TOKEN_TYPES}")
        self.unit, self.total = unit, total
        self.tokens: dict[str, int] = {}
        self.examples = 0
        self.steps = 0
        self.resumed: dict[str, Any] | None = None
        self.durable: dict[str, int] | None = None
        self.metrics: dict[str, Any] = {}
        self.measured: dict[str, int] = {}  # at which step each metric was measured
        self.warnings: list[str] = []  # for the stage's record
        self.phase_tokens: dict[str, int] = {}  # of `unit`, by phase that has ended
        self._marks: list[tuple[str, float]] = []
        self._phase_began_with = 0
        self._first = phase
        self._started = time.monotonic()
        self._written = self._printed = self._started
        self._resumed_tokens = 0
        self._main = os.environ.get("RANK", "0") == "0"  # of several processes one reports
        self._path = os.environ.get("STAGE_PROGRESS") if self._main else None

    def __enter__(self) -> Progress:
        self.phase(self._first)
        self._print()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.phase("save")
        self._print()

    def phase(self, name: str) -> str:
        """Mark that another phase begins now, and write at once; returns the name of the one that ends.

        Inside `with Progress(...)` it is `work`, before that `start`, after it `save`. The meter divides joules and seconds
        among phases by these marks; rates are of `work`. A stage that loads a model inside begins with `phase="start"`.
        """
        ended = self._marks[-1][0] if self._marks else "start"
        self.phase_tokens = self._tokens_by_phase()
        self._phase_began_with = self.tokens.get(self.unit, 0)
        self._marks.append((name, time.monotonic()))
        self.write()
        return ended

    def _tokens_by_phase(self) -> dict[str, int]:
        current = self._marks[-1][0] if self._marks else "start"
        new = self.tokens.get(self.unit, 0) - self._phase_began_with
        return self.phase_tokens | {current: self.phase_tokens.get(current, 0) + new}

    def resume(self, steps: int = 0, examples: int = 0, **tokens: int) -> None:
        """State the work that earlier attempts left finished."""
        self.steps, self.examples, self.tokens = steps, examples, dict(tokens)
        self.resumed = self.durable = self._counts()
        self._resumed_tokens = self._phase_began_with = self.tokens.get(self.unit, 0)

    def add(self, steps: int = 0, examples: int = 0, **tokens: int) -> None:
        """Count work done since the last call."""
        unknown = set(tokens) - set(TOKEN_TYPES)
        if unknown:
            raise ValueError(f"token types {sorted(unknown)} are not among {TOKEN_TYPES}")
        self.steps += steps
        self.examples += examples
        for kind, count in tokens.items():
            self.tokens[kind] = self.tokens.get(kind, 0) + int(count)
        now = time.monotonic()
        if now - self._written >= _WRITE_EVERY_S:
            self.write()
        if now - self._printed >= _PRINT_EVERY_S:
            self._print()

    def measure(self, metrics: dict[str, float]) -> None:
        """Keep the newest metrics, and write at once, so that the meter sees them with the joules of this instant."""
        self.metrics.update(metrics)
        self.measured.update(dict.fromkeys(metrics, self.steps))
        self.write()

    def saved(self) -> None:
        """Declare all work so far durable: a killed stage resumes from here."""
        self.durable = self._counts()
        self.write()

    def write(self) -> None:
        """Replace the progress file."""
        self._written = time.monotonic()
        if not self._path:
            return
        content = {
            "unit": self.unit,
            "total": self.total,
            "work": self._counts(),
            "durable": self.durable,
            "resumed": self.resumed,
            "metrics": self.metrics,
            "measured": self.measured,
            "warnings": self.warnings,
            "phases": {"tokens": self._tokens_by_phase(), "marks": self._marks[-_MARKS:]},
        }
        temporary = Path(f"{self._path}.{os.getpid()}")
        text = json.dumps(content)
        if len(text) > LARGEST_REPORT:
            left_out = f"{len(text)} bytes of metrics and warnings were left out of the record: the limit is {LARGEST_REPORT}"
            text = json.dumps(content | {"metrics": {}, "measured": {}, "warnings": [left_out]})
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(self._path)
        except OSError as error:  # a full disk must not stop the stage; the meter reports counts it did not get
            with contextlib.suppress(OSError):  # on a read-only file system
                temporary.unlink()
            print(f"warning: progress not written to {self._path}: {error}", file=sys.stderr)

    def _counts(self) -> dict[str, int]:
        return {"steps": self.steps, "examples": self.examples, **self.tokens}

    def _print(self) -> None:
        self._printed = time.monotonic()
        if not self._main:
            return
        done = self.tokens.get(self.unit, 0)
        rate = (done - self._resumed_tokens) / max(1e-9, self._printed - self._started)
        of = f"/{self.total}" if self.total else ""
        metrics = "".join(f"  {k} {v:.4g}" for k, v in self.metrics.items() if isinstance(v, float))
        print(f"{done}{of} {self.unit} tokens  {rate:.0f} tokens/s{metrics}", flush=True)
