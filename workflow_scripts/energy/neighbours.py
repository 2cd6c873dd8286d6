"""Other meters on this host: two stages metered at once both count the host's CPUs."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


class Neighbours:
    """A file per living meter in the host's temporary folder, its first line the stage, the others the meters that met it."""

    def __init__(self, stage: str, folder: Path | None = None) -> None:
        self._folder = folder or Path(tempfile.gettempdir()) / "energy-meters"
        self._mine = self._folder / str(os.getpid())
        self._stage = stage
        self.seen: dict[int, str] = {}
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o777, exist_ok=True)
            self._mine.write_text(f"{stage}\n")
        self.look()

    def look(self) -> None:
        """Remember other meters that are alive now, and let them know of this one, however short the overlap.

        Meters inside each other's stage are left out (a prerun meters loads).
        """
        family = _ancestors(os.getpid())
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                if not path.name.isdigit() or path == self._mine:
                    continue
                pid = int(path.name)
                others = _ancestors(pid)
                if not others:
                    path.unlink(missing_ok=True)
                elif pid not in family and os.getpid() not in others and pid not in self.seen:
                    self.seen[pid] = path.read_text().partition("\n")[0]
                    with path.open("a") as theirs:
                        theirs.write(f"{os.getpid()} {self._stage}\n")
            for line in self._mine.read_text().splitlines()[1:]:
                pid_text, _, stage = line.partition(" ")
                self.seen.setdefault(int(pid_text), stage)

    def warnings(self) -> list[str]:
        """One line per other meter."""
        return [
            f"another meter ran on this host at the same time (process {pid}, stage {stage}): host-level CPU and DRAM joules "
            "are in both records"
            for pid, stage in self.seen.items()
        ]

    def leave(self) -> None:
        """Remove this meter's file."""
        with contextlib.suppress(OSError):
            self._mine.unlink(missing_ok=True)


def _ancestors(pid: int) -> set[int]:
    """`pid` and its ancestors; empty when it does not run."""
    found: set[int] = set()
    while pid > 1 and pid not in found:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            break
        found.add(pid)
        pid = int(fields[1])
    return found
