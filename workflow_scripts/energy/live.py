"""What a running stage has cost so far, for the stage itself: a small file that the meter replaces on every flush.

The stage is told its path by STAGE_ENERGY and reads it with `workflow_scripts.progress.energy_so_far`. The figures are those
that the record will have: attributed joules of all attempts of the stage (of a part: of that part), failed ones and further
hosts included, summed over the boundary of `energy.total_energy_policy`. They are at most one flush period old.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workflow_scripts.energy.ledger import HOSTS, Attempt, latest
from workflow_scripts.energy.record import POLICIES, total_joules


class LiveEnergy:
    """Writes `{"joules", "joules_by_component", "reason", "time", "every_seconds"}` for one attempt.

    `joules` is null with a `reason` as long as no component of the boundary has a figure. `earlier` are the attempts before
    this one. A file that cannot be written is remembered in `lost`, never raised into the stage.
    """

    def __init__(self, path: Path, attempt: str, earlier: Sequence[Attempt], energy: dict[str, Any]) -> None:
        self._path, self._attempt, self._policy = path, attempt, energy["total_energy_policy"]
        self._every = energy["flush_seconds"]
        self._earlier: dict[str, float] = {}
        for each in earlier:
            self._add(self._earlier, each.joules)
        self.lost = 0

    def write(self, line: dict[str, Any] | None = None) -> None:
        """Replace the file; `line` is the ledger line of this instant, None before the first."""
        joules = dict(self._earlier)
        entries: dict[str, dict[str, Any]] = {}
        if line is not None:
            entries = Attempt(self._path, {}, [line], hosts=self._hosts()).joules
            self._add(joules, entries)
        total = total_joules(dict(joules), self._policy)
        reasons = [f"{name}: {entry['reason']}" for name in POLICIES[self._policy] if (entry := entries.get(name))]
        content = {
            "joules": total,
            "joules_by_component": joules,
            "reason": None if total is not None else "; ".join(reasons) or "the meter has no figure yet",
            "time": time.time(),
            "every_seconds": self._every,
        }
        temporary = self._path.with_name(f".{self._path.name}")
        try:
            temporary.write_text(json.dumps(content), encoding="utf-8")
            temporary.replace(self._path)
        except OSError:
            self.lost += 1

    def remove(self) -> None:
        """The attempt has ended: the record has the figures."""
        self._path.unlink(missing_ok=True)

    def _hosts(self) -> list[Attempt]:
        """The newest line of each further host of this attempt."""
        found = [latest(path) for path in sorted((self._path.parent / "attempts" / HOSTS).glob(f"{self._attempt}.*.jsonl"))]
        return [each for each in found if each is not None]

    @staticmethod
    def _add(joules: dict[str, float], entries: dict[str, dict[str, Any]]) -> None:
        for name, entry in entries.items():
            if entry["joules"] is not None:
                joules[name] = joules.get(name, 0.0) + entry["joules"]
