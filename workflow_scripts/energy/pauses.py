"""Time in which the whole job stood still: Slurm's suspend, SIGSTOP. It is neither work nor the job's energy."""

from __future__ import annotations

import threading
import time
from typing import Any

BEAT_S = 0.5
PAUSE_S = 2.0  # later than that, and it was no busy scheduler


class Pauses(threading.Thread):
    """Counts the seconds in which this process could not run, and the joules meanwhile.

    A thread that only sleeps knows them: the meter itself may be late for other reasons, such as a slow disk, while the stage
    works on.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seconds = 0.0
        self.last = 0.0  # seconds that the newest sample has lost
        self.joules: dict[str, float] = {}
        self._lost = 0.0
        self._beat = threading.Event()
        self._at: float | None = None
        self._before: dict[str, float | None] = {}
        self.start()

    def run(self) -> None:
        """Sleep, and see how late it is."""
        while True:
            began = time.monotonic()
            time.sleep(BEAT_S)
            late = time.monotonic() - began - BEAT_S
            self._lost += late if late > PAUSE_S else 0.0
            self._beat.set()

    def without(self, now: float, joules: dict[str, float | None]) -> dict[str, float | None]:
        """Cumulative joules at `now` without those of pauses; called at every sample."""
        self.last = 0.0
        if self._at is not None and now - self._at > PAUSE_S:
            self._beat.clear()
            self._beat.wait(2 * PAUSE_S)  # the beat that saw it
            self.last, self._lost = self._lost, 0.0
            if self.last:
                self.seconds += self.last
                for name, value in joules.items():
                    before = self._before.get(name)
                    if value is not None and before is not None:
                        self.joules[name] = self.joules.get(name, 0.0) + max(0.0, value - before)
        self._at, self._before = now, joules
        return {name: None if value is None else self._less(name, value) for name, value in joules.items()}

    def take_out(self, line: dict[str, Any]) -> None:
        """Take pauses out of a line of the ledger; they stand in it apart."""
        if not self.seconds:
            return
        line["elapsed_s"] -= self.seconds
        for name, entry in line["joules"].items():
            if entry["joules"]:
                kept = self._less(name, entry["joules"]) / entry["joules"]
                for key in {"joules", "host_joules", "crosscheck"} & entry.keys():  # the others lose the same part
                    entry[key] = None if entry[key] is None else entry[key] * kept
        line["suspended"] = {"seconds": self.seconds, "joules": self.joules}
        line["warnings"].append(
            f"the job was suspended for {self.seconds:.0f} s: this time and the {sum(self.joules.values()):.0f} J meanwhile "
            "are not counted"
        )

    def _less(self, name: str, value: float) -> float:
        return max(0.0, value - self.joules.get(name, 0.0))
