"""What the meter shows: a progress line on a terminal, and the end of a failed stage's log."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

_TAIL_LINES, _TAIL_BYTES = 25, 16384


class Bar:
    """A progress line on the terminal."""

    def __init__(self, stage: str) -> None:
        self._stage = stage

    def draw(self, work: dict[str, Any] | None, elapsed: float) -> None:
        """Replace the line; `elapsed` in s."""
        width = shutil.get_terminal_size().columns - 1
        text = f"{self._stage}  {elapsed:.0f} s"
        if work:
            done, total = work["work"].get(work["unit"], 0), work["total"]
            new = done - ((work["resumed"] or {}).get(work["unit"], 0))
            filled = int(20 * min(1.0, done / total)) if total else 0
            bar = f"[{'#' * filled}{'.' * (20 - filled)}] " if total else ""
            text += f"  {bar}{done}{f'/{total}' if total else ''} {work['unit']} tokens  {new / max(elapsed, 1e-9):.0f}/s"
        print("\r\x1b[K" + text[:width], end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Remove the line."""
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def tail(log: Path) -> list[str]:
    """The last lines of a log of any size."""
    with log.open("rb") as handle:
        handle.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        return handle.read().decode("utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
