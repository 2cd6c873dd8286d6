"""The state folder of a stage: named by a fingerprint, held by one meter at a time.

The fingerprint covers the stage, its `--settings` and the content of its `--input` files (manifests and sources), so a
changed configuration, input or code never meets the state of another. The folder is no output of a rule: Snakemake deletes
outputs of failed jobs, and what is spent or half done must survive that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STALE_AFTER_S = 120.0
BEAT_EVERY_S = 20.0


class LockedError(RuntimeError):
    """Another process works on this very stage."""


def fingerprint(stage: str, command: Sequence[str], inputs: Sequence[Path], experiment: str | None = None) -> str:
    """Hex digest of the experiment, of the stage's module and `--settings` in `command`, and of the content of `inputs`."""
    digest = hashlib.sha256(f"{stage}\0{experiment or ''}".encode())
    for option in ("-m", "--settings"):
        if option in command:
            digest.update(b"\0" + command[command.index(option) + 1].encode())
    for path in sorted(inputs, key=lambda p: p.name):
        digest.update(b"\0" + path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


class Lock:
    """`lock.json` in a state folder: owner, and a heartbeat in its time stamp.

    On this host the owner is trusted as long as its process lives; the lock of another host is taken over when nobody has
    touched it for two minutes.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock.json"
        self._mine = {"host": socket.gethostname(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}

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

    def beat(self) -> None:
        """Say that the owner is alive."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._path)

    def release(self) -> None:
        """Give the lock back, unless another took it over."""
        if self._owner() == self._mine:
            self._path.unlink(missing_ok=True)

    def _owner(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads(self._path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return content

    def _remove_if_stale(self) -> None:
        owner = self._owner()
        try:
            age = time.time() - self._path.stat().st_mtime
        except FileNotFoundError:
            return
        here = owner.get("host") == self._mine["host"]
        if not (not _alive(owner.get("pid")) if here else age > STALE_AFTER_S):
            raise LockedError(
                f"{self._path.parent} is being worked on by process {owner.get('pid')} on {owner.get('host')} "
                f"(Slurm job {owner.get('job')}), last seen {age:.0f} s ago: wait for it, or end it"
            )
        aside = self._path.with_name(f"lock.stale.{self._mine['host']}.{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            self._path.rename(aside)  # of several that saw it stale, one gets it
            if json.loads(aside.read_text() or "{}") != owner:
                aside.rename(self._path)  # it was a new owner's by then
            aside.unlink(missing_ok=True)


def _alive(pid: Any) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
