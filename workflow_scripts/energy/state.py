"""The state folder of a stage: named by a fingerprint, held by one meter at a time.

The fingerprint covers the stage, its experiment, its settings, its code and the content of its input files, so a changed
configuration, input or code never meets the state of another. The folder is no output of a rule:
Snakemake deletes outputs of failed jobs, and what is spent or half done must survive that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workflow_scripts.artefact import ArtefactError, read_json, sha256
from workflow_scripts.energy.display import say
from workflow_scripts.errors import UserError

STALE_AFTER_S = 120.0
BEAT_EVERY_S = 20.0
_LOOK_EVERY_S = 2.0


TOKEN_FOLDER = "drivers"  # in the state folder: an empty file for each driver that has started
TOKEN_VARIABLE = "DISTILL_DRIVER_TOKEN"
HOSTS_VARIABLE = "METER_HOSTS"  # folder that keeps what was found out about each host
_VISIBLE_WITHIN_S = 60.0


class NotSharedError(UserError):
    """The results folder of this host is not the one that Snakemake sees."""


def check_shared(state: Path) -> None:
    """Raise NotSharedError when the driver's token is not in the state folder within a minute; no driver, no check."""
    announced = os.environ.get(TOKEN_VARIABLE)
    if announced is None:
        return
    token, _, driver = announced.partition("@")
    deadline = time.monotonic() + _VISIBLE_WITHIN_S
    while not (state / TOKEN_FOLDER / token).is_file():
        if time.monotonic() > deadline:
            raise NotSharedError(
                f"output.root: {state.parent.absolute()} on {socket.gethostname()} is not the folder that Snakemake writes to "
                f"on {driver}: set output.root to a file system that the compute nodes share"
            )
        time.sleep(1)  # a network file system may show it late


class LockedError(UserError):
    """Another process works on this very stage."""


@dataclass(frozen=True)
class Identity:
    """What a stage's result depends on: its settings, the digest of its code, its input manifests, and all files by content."""

    settings: dict[str, Any] | None = None
    code: str | None = None
    inputs: dict[str, str] = field(default_factory=dict)  # argument name -> manifest
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # path -> bytes, mtime_ns, sha256

    @classmethod
    def of(cls, settings: str | None, code: str | None, inputs: Sequence[str], files: Sequence[str]) -> Identity:
        """From the meter's options: `inputs` are `NAME=PATH`, `files` paths. Raises OSError for a file that cannot be read."""
        named = dict(text.split("=", 1) for text in inputs)
        contents = {path: file_identity(Path(path)) for path in dict.fromkeys([*named.values(), *files])}
        return cls(json.loads(settings) if settings else None, code, named, contents)

    def fingerprint(self, stage: str, experiment: str | None) -> str:
        """Hex digest of all of it but times and folders, for one experiment.

        How a stage is split or started is left out: it has the same state then.
        """
        roles = {path: name for name, path in self.inputs.items()}
        files = sorted((roles.get(path, Path(path).name), entry["sha256"]) for path, entry in self.files.items())
        return hashlib.sha256(
            json.dumps([stage, experiment, self.settings, self.code, files], sort_keys=True).encode()
        ).hexdigest()[:16]


def file_identity(path: Path) -> dict[str, Any]:
    """Size [bytes], time of change [ns] and SHA-256 of a file."""
    state = path.stat()
    return {"bytes": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": sha256(path)}


class Lock:
    """`lock.json` in a state folder: owner, and a heartbeat in its time stamp.

    On this host (and since its last boot) the owner is trusted as long as its process lives; the lock of another host is taken
    over when nobody has touched it for two minutes, by the clock of the file system that both share.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock.json"
        self._mine = {
            "host": socket.gethostname(),
            "boot": _boot_id(),
            "pid": os.getpid(),
            "started": _start_ticks(os.getpid()),
            "job": os.environ.get("SLURM_JOB_ID"),
        }

    def acquire(self) -> None:
        """Take the lock. Raises LockedError naming the owner."""
        for _ in range(3):
            try:
                descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                self._remove_if_stale()
                continue
            with os.fdopen(descriptor, "w") as handle:
                json.dump(self._mine, handle)
            return
        raise LockedError(f"cannot take {self._path}: others keep taking it")

    def wait(self, minutes: float, stage: str) -> float:
        """Take the lock, waiting up to `minutes` for its owner to end; returns the wait [s]. Raises LockedError.

        A job submitted again while its first run still works (a driver that died, a requeue) waits here, then finds the work
        done.
        """
        begun = time.monotonic()
        said = False
        while True:
            try:
                self.acquire()
            except LockedError as error:
                left = begun + 60 * minutes - time.monotonic()
                if left <= 0:
                    raise
                if not said:
                    say(f"{stage}: waiting up to {minutes:g} min: {error}")
                said = True
                time.sleep(min(_LOOK_EVERY_S, left))
            else:
                return time.monotonic() - begun if said else 0.0

    def beat(self) -> bool:
        """Say that the owner is alive; False when another has taken the lock over."""
        if (owner := self._owner()) and owner != self._mine:
            return False
        with contextlib.suppress(OSError):
            os.utime(self._path)
        return True

    def release(self) -> None:
        """Give the lock back, unless another took it over."""
        if self._owner() == self._mine:
            with contextlib.suppress(OSError):  # where it cannot be removed it is that of a dead process from now on
                self._path.unlink(missing_ok=True)

    def holder(self) -> dict[str, Any] | None:
        """The living owner (empty while it writes its name), None when nobody works here.

        Touches nothing; judges a lock of another host by this one's clock.
        """
        try:
            age = time.time() - self._path.stat().st_mtime
        except OSError:
            return None
        owner = self._owner()
        return None if self._dead(owner, age) or not self._path.exists() else owner

    def _dead(self, owner: dict[str, Any], age: float) -> bool:
        here = (owner.get("host"), owner.get("boot")) == (self._mine["host"], self._mine["boot"])
        return not _alive(owner) if here else age > STALE_AFTER_S

    def _owner(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads(self._path.read_text())
        except (OSError, json.JSONDecodeError):
            return {}
        return content

    def _remove_if_stale(self) -> None:
        owner = self._owner()
        try:
            text = self._path.read_text()
            age = self._now() - self._path.stat().st_mtime
        except FileNotFoundError:
            return
        if not self._dead(owner, age):
            raise LockedError(
                f"{self._path.parent} is being worked on by process {owner.get('pid')} on {owner.get('host')} "
                f"(Slurm job {owner.get('job')}), last seen {age:.0f} s ago: wait for it, or end it"
            )
        aside = self._path.with_name(f"lock.stale.{self._mine['host']}.{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            self._path.rename(aside)  # of several that saw it stale, one gets it
            if aside.read_text() != text:
                aside.rename(self._path)  # it was a new owner's by then
            aside.unlink(missing_ok=True)

    def _now(self) -> float:
        """The time by the clock that stamps the lock file, which may be a file server's."""
        probe = self._path.with_name(f"lock.clock.{self._mine['host']}.{os.getpid()}")
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink(missing_ok=True)
        return now


def host_identity() -> str:
    """Names a running host: its name and boot, so that two nodes of a test cluster on one machine are one host."""
    return f"{socket.gethostname()}-{(_boot_id() or '')[:8]}"


def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _alive(owner: dict[str, Any]) -> bool:
    """Whether the owner's process runs; a process number may have been given to another since."""
    pid = owner.get("pid")
    return isinstance(pid, int) and (ticks := _start_ticks(pid)) is not None and ticks == owner.get("started")


def files_of_parts(records: list[str]) -> list[str]:
    """Manifests and records of the parts that a merge reads."""
    return [
        path for record in records for path in (record, record.removesuffix(".record.json") + ".json") if Path(path).is_file()
    ]


def fingerprint_of_parts(records: list[str]) -> str | None:
    """Name of the state folder that the parts of a stage have worked in, by their records; None without parts."""
    fingerprints = {read_json(Path(path))["provenance"]["fingerprint"] for path in records}
    if len(fingerprints) > 1:
        raise ArtefactError(
            f"the parts {', '.join(records)} are of different settings, inputs or code: delete them and run again"
        )
    return fingerprints.pop() if fingerprints else None
