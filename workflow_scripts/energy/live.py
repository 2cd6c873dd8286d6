"""What the meter and a running stage tell each other: what it has cost so far, and what it reports of its work.

What it has cost is a small file that the meter replaces on every flush.

The stage is told its path by STAGE_ENERGY and reads it with `workflow_scripts.progress.energy_so_far`. The figures are those
that the record will have: attributed joules of all attempts of the stage (of a part: of that part), failed ones and further
hosts included, summed over the boundary of `energy.total_energy_policy`. They are at most one flush period old.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_scripts.energy.ledger import HOSTS, POLICIES, Attempt, latest, total_joules
from workflow_scripts.progress import LARGEST_REPORT

if TYPE_CHECKING:
    from pydantic import ValidationError


class LiveEnergy:
    """Writes `{"joules", "joules_by_component", "reason", "time", "every_seconds", "work_joules"}` for one attempt.

    `joules` is null with a `reason` as long as no component of the boundary has a figure, and when one has none that had one
    before in this attempt, or in any `earlier` one; or when an earlier one lacks it: the record's rule (`record.lost`).
    A file that cannot be written is remembered in `lost`, never raised into the stage.
    """

    def __init__(self, path: Path, attempt: str, earlier: Sequence[Attempt], energy: dict[str, Any]) -> None:
        self._path, self._attempt, self._policy = path, attempt, energy["total_energy_policy"]
        self._every = energy["flush_seconds"]
        self._earlier: dict[str, float] = {}
        self._lacking: set[str] = set()  # components that an earlier attempt has no figure of
        for each in earlier:
            self._add(self._earlier, each.joules)
            self._lacking |= {name for name, entry in each.joules.items() if entry["joules"] is None}
        self._known: set[str] = set()  # components that this attempt has had a figure of
        self.lost = 0

    def write(self, line: dict[str, Any] | None = None) -> None:
        """Replace the file; `line` is the ledger line of this instant, None before the first."""
        temporary = self._path.with_name(f".{self._path.name}")
        try:
            temporary.write_text(json.dumps(self._content(line)), encoding="utf-8")
            temporary.replace(self._path)
        except OSError:
            self.lost += 1

    def remove(self) -> None:
        """The attempt has ended: the record has the figures."""
        self._path.unlink(missing_ok=True)

    def _content(self, line: dict[str, Any] | None) -> dict[str, Any]:
        entries = Attempt(self._path, {}, [line], hosts=self._hosts()).joules if line is not None else {}
        missing = self._missing(entries)
        joules = {name: value for name, value in self._earlier.items() if name not in missing}
        self._add(joules, entries)
        boundary = POLICIES[self._policy]
        total = None if missing.intersection(boundary) else total_joules(dict(joules), self._policy)
        unknown = [name for name in boundary if name in missing or (name in entries and entries[name]["joules"] is None)]
        reasons = [f"{name}: {entries.get(name, {}).get('reason') or 'an earlier attempt has no figure'}" for name in unknown]
        return {
            "joules": total,
            "joules_by_component": joules,
            "reason": None if total is not None else "; ".join(reasons) or "the meter has no figure yet",
            "time": time.time(),
            "every_seconds": self._every,
            "work_joules": ((line or {}).get("phases") or {}).get("work", {}).get("joules") or 0.0,
        }

    def _hosts(self) -> list[Attempt]:
        """The newest line of each further host of this attempt; without figures where its ledger cannot be read."""
        paths = sorted((self._path.parent / "attempts" / HOSTS).glob(f"{self._attempt}.*.jsonl"))
        return [latest(path) or self._unread(path) for path in paths]

    def _unread(self, path: Path) -> Attempt:
        host = path.name.removeprefix(f"{self._attempt}.").removesuffix(".jsonl")
        nothing = {"joules": None, "reason": f"{path} has no readable first line"}
        return Attempt(path, {"host": host}, [{"joules": dict.fromkeys(("gpu", "cpu", "dram"), nothing)}])

    def _missing(self, entries: dict[str, dict[str, Any]]) -> set[str]:
        """Components that have had a figure somewhere and lack one elsewhere."""
        now = {name for name, entry in entries.items() if entry["joules"] is not None}
        self._known |= now
        somewhere = self._known | set(self._earlier)
        return {name for name in somewhere if name in self._lacking or (entries and name not in now)}

    @staticmethod
    def _add(joules: dict[str, float], entries: dict[str, dict[str, Any]]) -> None:
        for name, entry in entries.items():
            if entry["joules"] is not None:
                joules[name] = joules.get(name, 0.0) + entry["joules"]


LOADED = threading.Event()  # what reads a report is imported


def load_models() -> None:
    """Import what reads a report, in a thread of its own: no stage waits for it to begin, and no sample waits for it."""
    import workflow_scripts.energy.model  # noqa: F401

    LOADED.set()


def read_report(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The stage's progress file, and what of it was left out, in words; None where there is nothing to use.

    A stage may write anything: numbers that are none become null, and what has another shape than a Report is no report.
    """
    from pydantic import ValidationError  # here, so that no stage waits for it

    from workflow_scripts.energy.model import Metrics, Report

    try:
        if (size := path.stat().st_size) > LARGEST_REPORT:
            return None, [f"the stage's report of {size} bytes was not read: the limit is {LARGEST_REPORT}"]
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, []
    except (OSError, ValueError, RecursionError) as error:
        return None, [f"the stage's report was not read: {type(error).__name__}: {error}"]
    dropped: list[str] = []
    content = _finite(raw, "", dropped)
    try:
        report: dict[str, Any] = content
        Report.model_validate(report, strict=True)
    except ValidationError as error:
        return None, [f"the stage's report was not read: {_first(error)}"]
    try:
        Metrics.model_validate(report["metrics"])
    except ValidationError as error:
        dropped.append(f"the stage reported metrics that are none: {_first(error)}")
        for name in {entry["loc"][0] for entry in error.errors()}:
            report["metrics"].pop(name, None)
    return report, dropped


def _finite(value: Any, name: str, dropped: list[str]) -> Any:
    """A value read from JSON, with null for every number that a record cannot hold, which is named in `dropped`."""
    if isinstance(value, dict):
        return {key: _finite(inner, f"{name}.{key}" if name else key, dropped) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner, f"{name}[{i}]", dropped) for i, inner in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        dropped.append(f"the stage reported {name} = {value}, which is not finite: null in the record")
        return None
    if isinstance(value, int) and abs(value) >= 1 << 63:
        dropped.append(f"the stage reported {name} beyond 64 bits: null in the record")
        return None
    return value


def _first(error: ValidationError) -> str:
    found = error.errors()[0]
    return f"{'.'.join(map(str, found['loc'])) or 'all of it'}: {found['msg']}"
