"""Other meters on this host: two stages metered at once both count the host's CPUs."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


class Neighbours:
    """A file per living meter in the host's temporary folder."""

    def __init__(self, stage: str, folder: Path | None = None) -> None:
        self._folder = folder or Path(tempfile.gettempdir()) / "energy-meters"
        self._mine = self._folder / str(os.getpid())
        self.seen: dict[int, str] = {}
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o777, exist_ok=True)
            self._mine.write_text(stage)

    def look(self) -> None:
        """Remember other meters that are alive now, those inside each other's stage left out (a prerun meters loads)."""
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
                    self.seen[pid] = path.read_text()

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
