"""Joules, seconds and tokens of each phase of a stage, from the marks that the stage leaves in its progress file."""

from __future__ import annotations

from typing import Any

START = "start"  # until the first mark: the interpreter, imports, loading


class Phases:
    """One attempt's phases. A sample's joules are divided among the phases since the sample before in proportion to time."""

    def __init__(self, begin: float) -> None:
        """`begin`: start of the stage on the monotonic clock, which the host's processes share [s]."""
        self._last = begin
        self._joules = 0.0
        self._current = START
        self._spent: dict[str, list[float]] = {}  # name -> seconds, joules
        self._tokens: dict[str, int] = {}
        self._complete = True

    def tick(self, now: float, joules: float | None, work: dict[str, Any] | None, final: bool = False) -> None:
        """Take a sample: cumulative joules (None where they are not known yet) and what the stage has said last."""
        if joules is None and not final:
            return
        told = (work or {}).get("phases") or {}
        self._tokens = told.get("tokens") or self._tokens
        self._complete &= joules is not None
        step = (joules or self._joules) - self._joules
        whole, at = now - self._last, self._last
        marks = [(str(name), float(time)) for name, time in told.get("marks", []) if time <= now]
        for name, mark in [*marks, (None, now)]:
            until = max(mark, at)
            if until > at:
                spent = self._spent.setdefault(self._current, [0.0, 0.0])
                spent[0] += until - at
                spent[1] += step * (until - at) / whole
                at = until
            self._current = name or self._current
        self._last, self._joules = now, self._joules + step

    def skip(self, seconds: float) -> None:
        """Leave out that many seconds of those since the last sample: the job stood still."""
        self._last += seconds

    @property
    def work_joules(self) -> float:
        """Joules of the work phase so far."""
        return self._spent.get("work", [0.0, 0.0])[1]

    def content(self) -> dict[str, dict[str, Any]]:
        """`{name: {joules, seconds, tokens}}` for the ledger; joules are null where the attempt's are not known to its end."""
        return {
            name: {"joules": joules if self._complete else None, "seconds": seconds, "tokens": self._tokens.get(name, 0)}
            for name, (seconds, joules) in self._spent.items()
        }
