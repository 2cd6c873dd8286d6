"""Other meters on this host: two stages metered at once both count the host's CPUs."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
from pathlib import Path

ANOTHER_METER = "other meter(s) ran on this host at the same time"  # in its warning
_SOCKETS = Path("/proc/net/unix")
_PREFIX = "energy-meter/"
_NAME = re.compile(_PREFIX + r"([0-9]+)-[0-9a-f]+/([A-Za-z0-9_.-]{1,60})")


class Neighbours:
    """Meters that ran on this host at the same time, by process id with their stage.

    Each meter has an abstract Unix socket that is named after it. /proc shows these to every user, they need no folder and no
    rights, and they end with their process. A meter that finds another tells it, so that the other hears of an overlap however
    short. Meters in another network namespace (a container that does not share the host's) are not seen.
    """

    def __init__(self, stage: str) -> None:
        self._mine = f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}/{re.sub(r'[^A-Za-z0-9_.-]', '_', stage)[:60] or '_'}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self.seen: dict[int, str] = {}
        with contextlib.suppress(OSError):
            self._socket.bind(f"\0{self._mine}")
        self.look()

    def look(self) -> None:
        """Remember other meters that are alive now, and those that have told of themselves.

        Meters inside each other's stage are left out (a prerun meters loads).
        """
        family = _ancestors(os.getpid())
        with contextlib.suppress(OSError):
            for line in _SOCKETS.read_text().splitlines():
                name = line.rpartition(" ")[2].removeprefix("@")
                found = _NAME.fullmatch(name)
                if found is None or name == self._mine or int(found[1]) in self.seen:
                    continue
                if int(found[1]) not in family and os.getpid() not in _ancestors(int(found[1])):
                    self.seen[int(found[1])] = found[2]
                    with contextlib.suppress(OSError):  # it may have ended
                        self._socket.sendto(self._mine.encode(), f"\0{name}")
        with contextlib.suppress(BlockingIOError):
            while True:
                if found := _NAME.fullmatch(self._socket.recv(256).decode(errors="replace")):
                    self.seen.setdefault(int(found[1]), found[2])

    def warnings(self) -> list[str]:
        """One line for all other meters."""
        if not self.seen:
            return []
        count, stages = len(self.seen), ", ".join(sorted(set(self.seen.values())))
        return [f"{count} {ANOTHER_METER} ({stages}): host-level joules are in all their records"]

    def leave(self) -> None:
        """Be found no more."""
        self._socket.close()


def _ancestors(pid: int) -> set[int]:
    """`pid` and its ancestors; empty when it does not run, or is hidden from this user."""
    found: set[int] = set()
    while pid > 1 and pid not in found:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            break
        found.add(pid)
        pid = int(fields[1])
    return found
