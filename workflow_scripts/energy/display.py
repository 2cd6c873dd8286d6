"""What the meter shows: the progress of its stage, and the end of a failed stage's log."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

_TAIL_LINES, _TAIL_BYTES = 25, 16384
_FIRST_S, _LONGEST_S = 10.0, 600.0  # shortest and longest time between two lines of one stage
WIPE = "\r\x1b[K"  # removes the bar of another meter, which draws itself again


def say(text: str) -> None:
    """A line on standard error; where that is closed or on a full disk it costs the line, and not the stage."""
    if sys.stderr is None:
        silence()
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        silence()


def silence() -> None:
    """Nothing more on standard error: neither a line nor the interpreter's flush at its end shall fail."""
    sys.stderr = Path(os.devnull).open("w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115


class Bar:
    """Progress on standard error: a bar on a terminal that no other meter draws on, else whole lines at growing intervals.

    A terminal has one cursor. The meter that holds the lock on the terminal's device owns it; the kernel frees the lock when
    that meter ends, however it ends, and another meter takes it.
    """

    def __init__(self, stage: str) -> None:
        if sys.stderr is None:
            silence()
        self._stage = stage
        self._terminal = _open_terminal()
        self._bar: tqdm | None = None
        self._due = _FIRST_S

    def draw(self, work: dict[str, Any] | None, elapsed: float) -> None:
        """Show the state of the work, as the stage's progress file has it, after `elapsed` s."""
        try:
            self._draw(work, elapsed)
        except OSError:  # the display is an extra
            self._bar = None
            silence()

    def _draw(self, work: dict[str, Any] | None, elapsed: float) -> None:
        if self._bar is None and self._terminal is not None and _locked(self._terminal):
            from tqdm import tqdm  # no stage waits for this import

            tqdm.monitor_interval = 0  # no thread of its own in the meter
            self._bar = tqdm(desc=self._stage, unit_scale=True, leave=False, dynamic_ncols=True, file=sys.stderr)
        if self._bar is None:
            if elapsed >= self._due:
                self._due = elapsed + min(max(_FIRST_S, elapsed / 2), _LONGEST_S)
                print(f"{'' if self._terminal is None else WIPE}{self._line(work, elapsed)}", file=sys.stderr, flush=True)
            return
        if work:
            done, before = _counts(work)
            self._bar.initial, self._bar.n, self._bar.total = before, done, work["total"] or None
            self._bar.unit = f" {work['unit']} tokens"
        self._bar.refresh()

    def clear(self) -> None:
        """Remove the bar, and leave the terminal to the next meter."""
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.close()
        if self._terminal is not None:
            os.close(self._terminal)
        self._bar = self._terminal = None

    def _line(self, work: dict[str, Any] | None, elapsed: float) -> str:
        parts = [f"{self._stage}: {elapsed:.0f} s"]
        if work:
            done, before = _counts(work)
            of = f" of {work['total']:,} ({done / work['total']:.0%})" if work["total"] else ""
            parts += [f"{done:,}{of} {work['unit']} tokens", f"{(done - before) / elapsed:,.0f}/s"]
        return ", ".join(parts)


def _counts(work: dict[str, Any]) -> tuple[int, int]:
    """Tokens done, and those of them that earlier attempts did."""
    unit = work["unit"]
    return work["work"].get(unit, 0), (work["resumed"] or {}).get(unit, 0)


def _open_terminal() -> int | None:
    """A descriptor of its own for the terminal behind standard error; None where there is none that can be opened."""
    try:
        return os.open(os.ttyname(sys.stderr.fileno()), os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # no terminal, or one of another mount namespace
        return None


def _locked(terminal: int) -> bool:
    """Take the lock on the terminal; False while another meter has it."""
    try:
        fcntl.flock(terminal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def tail(log: Path) -> list[str]:
    """The last lines of a log of any size."""
    with log.open("rb") as handle:
        handle.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        return handle.read().decode("utf-8", errors="replace").splitlines()[-_TAIL_LINES:]


def append(log: Path, line: str) -> None:
    """Add a line to a log; a full disk keeps it out."""
    with contextlib.suppress(OSError), log.open("a", encoding="utf-8") as handle:
        handle.write(f"{line}\n")
