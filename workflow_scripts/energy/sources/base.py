"""What every source gives, and the arithmetic that counters and power samples share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass
class Figure:
    """Cumulative energy of one component since its source was started.

    `joules` is None with a `reason` when it is not known. `devices` has joules by device; `crosscheck` is the same energy by
    a second method [J]; `gap_joules` is the part that was extrapolated over time no sample covered; `idle_joules` is what
    the host would have used at rest, where that is known.
    """

    joules: float | None
    watts: float | None = None
    method: str | None = None
    energy_class: str = "unavailable"
    reason: str | None = None
    devices: dict[str, float] = field(default_factory=dict)
    crosscheck: float | None = None
    gap_joules: float = 0.0
    idle_joules: float | None = None
    warnings: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The figure for the ledger."""
        names = ("joules", "method", "reason", "devices", "crosscheck", "gap_joules")
        return {"class": self.energy_class} | {name: getattr(self, name) for name in names}


def unavailable(reason: str, devices: dict[str, float] | None = None) -> Figure:
    """A figure that could not be had, with the reason; `devices` are those of its devices that are known."""
    return Figure(None, reason=reason, devices=devices or {})


class ReadingError(OSError):
    """A reading of a source that failed, in the words of what failed."""


def guarded(read: Callable[..., T], *arguments: Any) -> T:
    """The guard round every reading of a source: whatever its file, driver or library raises is a ReadingError.

    NVML's Python binding has exceptions beside NVMLError, a file may be empty, and a meter must outlive both.
    """
    try:
        return read(*arguments)
    except ReadingError:
        raise
    except Exception as error:
        words = error.strerror if isinstance(error, OSError) else None
        raise ReadingError(words or str(error) or type(error).__name__) from error


class CounterError(ValueError):
    """A counter that went back without having wrapped."""


class Counter:
    """Joules from a raw counter that may wrap at `wrap_at` (in raw units) once between two readings.

    Which backward step is a wrap and which a reset (driver reload, suspend) is told by the power it would mean: more than
    `max_watts` is no wrap, and raises CounterError. Without `wrap_at` every backward step is a reset.
    """

    def __init__(self, joules_per_unit: float, wrap_at: int | None = None, max_watts: float = 5000.0) -> None:
        self._unit, self._wrap_at, self._max_watts = joules_per_unit, wrap_at, max_watts
        self._last: tuple[float, int] | None = None
        self.joules = 0.0

    def advance(self, now: float, raw: int) -> None:
        """Take a reading at `now` [s]."""
        if self._last is not None:
            then, before = self._last
            step = raw - before
            if step < 0:
                step += self._wrap_at or 0
                plausible = self._max_watts * max(now - then, 1.0)
                if self._wrap_at is None or step < 0 or step * self._unit > plausible:
                    self._last = (now, raw)
                    raise CounterError(f"the counter went back from {before} to {raw} in {now - then:.1f} s, which is no wrap")
            self.joules += step * self._unit
        self._last = (now, raw)


class PowerIntegral:
    """Joules from power samples by the trapezoid rule over their real time stamps.

    Time between samples that are further apart than `max_gap_s` is a gap: its joules, by the same rule, are counted apart in
    `gap_joules`, not in `joules`.
    """

    def __init__(self, max_gap_s: float) -> None:
        self._max_gap_s = max_gap_s
        self._last: tuple[float, float] | None = None
        self.joules, self.gap_joules = 0.0, 0.0

    def advance(self, now: float, watts: float) -> None:
        """Take a sample at `now` [s]."""
        if self._last is not None:
            then, before = self._last
            joules = (watts + before) / 2 * (now - then)
            if now - then > self._max_gap_s:
                self.gap_joules += joules
            else:
                self.joules += joules
        self._last = (now, watts)
