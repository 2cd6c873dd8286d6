"""Past stages: the records in the state folders, with the settings and inputs that their ledgers name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow_scripts.artefact import ArtefactError, read_json
from workflow_scripts.plan.dry_run import options


@dataclass(frozen=True)
class Past:
    """One past stage. `published` are the facts of the artefact that it made, where it keeps them."""

    stage: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    record: dict[str, Any]
    options: dict[str, Any]
    published: dict[str, Any] | None

    @property
    def work(self) -> dict[str, int | None]:
        """Typed counts of the work done."""
        counts: dict[str, int | None] = self.record["work"]
        return counts

    @property
    def hardware(self) -> tuple[Any, ...]:
        """CPU, number of CPUs, GPUs."""
        return hardware(self.record)

    def cost(self) -> tuple[float, float]:
        """Energy [J] and time [s] without what failed attempts have wasted."""
        joules, useful = self.record["total_energy_joules"], self.record["useful_j"]
        share = useful / joules if useful and self.record["status"] == "complete" else 1.0
        return joules * share, self.record["duration_seconds"] * share


def hardware(record: dict[str, Any]) -> tuple[Any, ...]:
    """CPU, number of CPUs and GPUs of a record."""
    origin = record["provenance"]
    return (origin["cpu"], origin["cpu_count"], tuple(sorted(str(d.get("name")) for d in record["devices"])))


def read_history(root: Path) -> tuple[list[Past], list[str]]:
    """All stages with an energy figure under `root`/state, newest first, and what was left out and why."""
    found, notes = [], []
    known = set()
    for path in sorted(root.glob("state/*/*/record.json")):
        known.add(path.parent.name)
        try:
            past = _read(path)
        except (ArtefactError, KeyError, OSError, StopIteration, json.JSONDecodeError) as error:
            notes.append(f"{path} is left out: {error!r}")
            continue
        if past is not None:
            found.append(past)
    lost = set()
    for path in (*root.glob("*/stages/*.json"), *root.glob("*/*/stages/*.json")):
        mark = read_json(path).get("provenance", {}).get("fingerprint")
        if mark is not None and mark not in known:
            lost.add(mark)
    if lost:
        notes.append(
            f"{len(lost)} record(s) under {root} are left out: their state folders, which name their settings, are gone"
        )
    return sorted(found, key=lambda past: -past.record["end_time"]), notes


def _read(path: Path) -> Past | None:
    """A past stage; None when it has no energy figure or cannot say what it worked on."""
    record = read_json(path)
    if not record["total_energy_joules"] or not record["duration_seconds"]:
        return None
    ledger = max(path.parent.glob("attempts/*.jsonl"), key=lambda p: p.name)
    with ledger.open(encoding="utf-8") as handle:
        start = json.loads(next(handle))
    command = options(start["command"])
    published = path.parent / "published.json"
    return Past(
        stage=path.parents[1].name,
        settings=json.loads(command.get("settings", ["{}"])[0]),
        inputs={name: values[0] for name, values in command.items() if values and values[0].endswith("manifest.json")},
        record=record,
        options=start["energy"],
        published=read_json(published) if published.is_file() else None,
    )
