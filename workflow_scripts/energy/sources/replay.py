"""Recorded readings played through the real arithmetic, without the hardware.

A trace is a list of instants, each `{"t": seconds, "<device>": reading}`; a reading is a number, or a text for the error that
the device gave. Before the first and after the last instant the nearest one holds.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import Any

from workflow_scripts.energy.sources.base import ReadingError

Trace = Sequence[dict[str, Any]]


class Replay:
    """The value of each device at a settable time."""

    def __init__(self, trace: Trace) -> None:
        self._trace = sorted(trace, key=lambda instant: instant["t"])
        self._times = [instant["t"] for instant in self._trace]
        self.now = self._times[0]

    def value(self, device: str) -> Any:
        """The reading of `device` in force at `now`; raises ReadingError where the trace has a text."""
        index = max(0, bisect.bisect_right(self._times, self.now) - 1)
        value = self._trace[index][device]
        if isinstance(value, str):
            raise ReadingError(value)
        return value

    def counter(self, device: str) -> Callable[[], int]:
        """A function that reads a counter, as a RAPL zone does."""
        return lambda: int(self.value(device))


class ReplayGpu:
    """A GPU whose counter is `<uuid>.mj` and whose power is `<uuid>.w` in the trace; without `.mj` it has no counter."""

    def __init__(self, replay: Replay, uuid: str) -> None:
        self._replay, self.uuid, self.component = replay, uuid, "gpu"

    def energy_mj(self) -> int | None:
        """See GpuReader."""
        try:
            return int(self._replay.value(f"{self.uuid}.mj"))
        except KeyError:
            return None

    def power_w(self) -> float:
        """See GpuReader."""
        return float(self._replay.value(f"{self.uuid}.w"))

    def processes(self) -> list[int]:
        """See GpuReader."""
        return [int(pid) for pid in self._replay.value(f"{self.uuid}.pids")]

    def describe(self) -> dict[str, Any]:
        """See GpuReader."""
        return {"name": "replayed GPU"}
