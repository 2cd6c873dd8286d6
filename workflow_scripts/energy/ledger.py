"""The attempt ledger: one append-only JSON-lines file per attempt, on disk every few seconds.

Lines: `start` (who, where, which sources), `tick` (cumulative joules per component and work counts at one instant) and
`end` (outcome). Joules in a tick are cumulative since the attempt began, so the last readable line is the whole truth of a
killed attempt.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workflow_scripts.errors import UserError

SCHEMA = "energy-ledger/1"
HOSTS = "hosts"  # folder beside the attempts: ledgers of further hosts of an attempt
_TAIL = 1 << 18  # bytes; the newest line of a ledger is shorter
_RESERVE = 1 << 16  # bytes beyond the end of a ledger
_LAST_LINE = 1 << 14  # bytes of them that only the end line may use
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE
CLASSES = ("measured", "integrated", "modelled", "unavailable")
POLICIES = {  # components inside the boundary, by `energy.total_energy_policy`
    "measured": ("gpu", "module", "cpu", "dram"),
    "codecarbon": ("cpu", "dram"),
    "gpu_only": ("gpu", "module"),
}


class LedgerError(UserError):
    """A ledger that does not belong here or cannot be read."""


def total_joules(joules: dict[str, float | None], policy: str) -> float | None:
    """Sum of the known components inside the policy's boundary; None when none is known."""
    known = [value for component in POLICIES[policy] if (value := joules.get(component)) is not None]
    return float(sum(known)) if known else None


def attempt_id() -> str:
    """A name for an attempt that begins now in this process: its Slurm job and restart, or its host; time and process id."""
    stamp, job = time.strftime("%Y%m%dT%H%M%S", time.gmtime()), os.environ.get("SLURM_JOB_ID")
    if job:
        return f"slurm{job}-{os.environ.get('SLURM_RESTART_COUNT', '0')}-{stamp}-{os.getpid()}"
    return f"{stamp}-{socket.gethostname()}-{os.getpid()}"


class LedgerWriter:
    """Appends to one attempt's ledger. A full disk is remembered in `lost_lines`, never raised into the stage.

    Space for the next lines is reserved beyond the end of the file, the last of it for the last line, so that a disk that fills
    up later costs some ticks and not the end. The start line has to come first: as long as it cannot be written, it is tried
    again before every other line.
    """

    def __init__(self, path: Path, start: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
        self._start: dict[str, Any] | None = {"event": "start", "schema": SCHEMA, **start}
        self._reserved = 0
        self.lost_lines = 0
        self._write_start()

    @property
    def started(self) -> bool:
        """Whether the start line is written, so that the ledger can be read."""
        return self._start is None

    def append(self, line: dict[str, Any]) -> None:
        """Write one line and wait until it is on disk, or leave nothing of it."""
        if not self._write_start() or not self._write(line):
            self.lost_lines += 1

    def close(self) -> None:
        """Close the file and give back what was reserved."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size)
        os.close(self._descriptor)

    def _write_start(self) -> bool:
        if self._start is not None and self._write(self._start):
            self._start = None
        return self._start is None

    def _write(self, line: dict[str, Any]) -> bool:
        text = (json.dumps(line, allow_nan=False) + "\n").encode()
        whole: int | None = None
        with contextlib.suppress(OSError):
            whole = os.fstat(self._descriptor).st_size
            self._reserve(whole)
            if line["event"] == "tick" and 0 < self._reserved - whole - len(text) < _LAST_LINE:
                return False  # the disk is full: what is left is for the end
            if os.write(self._descriptor, text) == len(text):
                os.fsync(self._descriptor)
                return True
        if whole is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, whole)
            self._reserved = 0  # it may have gone with what was cut off
        return False

    def _reserve(self, size: int) -> None:
        """Have at least half of the space for coming lines beyond `size`, where the file system can (Linux: fallocate)."""
        if self._reserved - size < _RESERVE // 2:
            fallocate = ctypes.CDLL(None).fallocate
            if fallocate(self._descriptor, _KEEP_SIZE, ctypes.c_int64(size), ctypes.c_int64(_RESERVE)) == 0:
                self._reserved = size + _RESERVE


@dataclass
class Attempt:
    """What the ledger says of one attempt; `end` is None when it was killed."""

    path: Path
    start: dict[str, Any]
    ticks: list[dict[str, Any]] = field(default_factory=list)
    end: dict[str, Any] | None = None
    cut_lines: int = 0
    hosts: list[Attempt] = field(default_factory=list)

    @property
    def last(self) -> dict[str, Any]:
        """The last known state: the end, else the last tick, else nothing but the start."""
        if self.end is not None:
            return self.end
        return self.ticks[-1] if self.ticks else {"elapsed_s": 0.0, "joules": {}, "work": None}

    @property
    def joules(self) -> dict[str, dict[str, Any]]:
        """Figure of each component, summed over all hosts of the attempt."""
        merged = dict(self.last["joules"])
        for host in self.hosts:
            for name, entry in merged.items():
                merged[name] = _add(entry, host.last["joules"].get(name), host.start["host"])
        return merged

    @property
    def codecarbon(self) -> list[dict[str, Any]]:
        """CodeCarbon's own figures, one per host that has them."""
        return [found for a in (self, *self.hosts) if (found := a.last.get("codecarbon"))]

    @property
    def gpu_peak_watts(self) -> float | None:
        """Peak power of the GPUs; over several hosts the sum of their peaks, an upper bound."""
        known = [watts for a in (self, *self.hosts) if (watts := a.last.get("gpu_peak_watts")) is not None]
        return sum(known) if known else None


def _add(entry: dict[str, Any], other: dict[str, Any] | None, host: str) -> dict[str, Any]:
    """A component's figure with that of a further host; null as soon as one of them is not known."""
    if other is None or other["joules"] is None:
        if entry["joules"] is None:
            return entry
        reason = f"host {host}: {(other or {}).get('reason') or 'it ended before it had a figure'}"
        return entry | {"joules": None, "class": "unavailable", "reason": reason}
    if entry["joules"] is None:
        return entry
    summed = {
        key: entry[key] + other[key]
        for key in ("joules", "host_joules", "crosscheck", "gap_joules")
        if entry.get(key) is not None and other.get(key) is not None
    }
    worst = max(entry["class"], other["class"], key=CLASSES.index)
    return entry | summed | {"class": worst, "devices": {**entry["devices"], **other["devices"]}}


def read_attempt(path: Path, stage: str) -> Attempt:
    """Read one ledger. A line cut by a kill is counted and left out; a foreign ledger raises LedgerError."""
    attempt: Attempt | None = None
    cut = 0
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            cut += 1
            continue
        if line.get("event") == "start":
            if line.get("schema") != SCHEMA:
                raise LedgerError(f"{path}: schema {line.get('schema')!r}, this program reads {SCHEMA}: nothing was changed")
            if line.get("stage") != stage:
                raise LedgerError(
                    f"{path}: a ledger of stage {line.get('stage')!r} in the folder of {stage!r}: move it away; "
                    "nothing was changed"
                )
            attempt = Attempt(path, line)
        elif attempt is not None and line.get("event") == "tick":
            attempt.ticks.append(line)
        elif attempt is not None and line.get("event") == "end":
            attempt.end = line
    if attempt is None:
        raise LedgerError(f"{path}: no readable start line ({cut} cut lines): move it away; nothing was changed")
    attempt.cut_lines = cut
    return attempt


def read_attempts(folder: Path, stage: str) -> list[Attempt]:
    """All attempts of a state folder, oldest first by their start time."""
    return in_order(attempt for path in folder.glob("*.jsonl") if (attempt := read_with_hosts(path, stage)) is not None)


def read_parts(folder: Path, stage: str) -> list[list[Attempt]]:
    """The attempts at each part of a stage, those of an earlier split too; none for a stage that was not split."""
    folders = sorted(folder.glob("parts/*/attempts"))
    return [attempts for part in folders if (attempts := read_attempts(part, stage))]


def at_one_merge(attempts: Iterable[Attempt], known: Mapping[str, object]) -> list[Attempt]:
    """The attempts whose settings and code are those of the provenance `known`: other merges of the same parts are not ours."""
    return [a for a in attempts if all(a.start["provenance"].get(key) == known.get(key) for key in ("settings", "code"))]


def read_with_hosts(path: Path, stage: str) -> Attempt | None:
    """One attempt with the ledgers of its further hosts; None where a meter ended before its first line was whole."""
    if not _has_start(path):
        return None
    attempt = read_attempt(path, stage)
    names = f"{attempt.start['attempt']}.*.jsonl"
    attempt.hosts = [read_attempt(other, stage) for other in sorted((path.parent / HOSTS).glob(names)) if _has_start(other)]
    return attempt


def in_order(attempts: Iterable[Attempt]) -> list[Attempt]:
    """Attempts, oldest first: by their number, which no clock decides, then by their start time."""
    return sorted(attempts, key=lambda a: (a.start.get("number", 0), a.start["time"], a.path.name))


def latest(path: Path) -> Attempt | None:
    """A growing ledger by its newest whole line, without reading the rest; None without a readable start line. Never raises."""
    try:
        with path.open("rb") as handle:
            first = handle.readline()
            size = handle.seek(0, os.SEEK_END)
            handle.seek(max(0, size - _TAIL))
            lines = handle.read().splitlines(keepends=True)
    except OSError:
        return None
    start = _whole_line(first)
    if start.get("event") != "start":
        return None
    attempt = Attempt(path, start)
    newest = next((line for text in reversed(lines) if (line := _whole_line(text)).get("event") in ("tick", "end")), None)
    if newest is not None:
        attempt.ticks.append(newest)
    return attempt


def _whole_line(text: bytes) -> dict[str, Any]:
    """A line of a ledger; empty when it is cut or damaged."""
    if not text.endswith(b"\n"):
        return {}
    try:
        line = json.loads(text)
    except ValueError:  # not JSON, or not UTF-8
        return {}
    return line if isinstance(line, dict) else {}


def _has_start(path: Path) -> bool:
    """Whether anything was written whole; a meter killed or out of disk at its first line knew nothing yet."""
    return b"\n" in path.read_bytes()
