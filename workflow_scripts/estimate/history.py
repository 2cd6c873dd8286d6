"""Past stages: the records under a results folder that say with which settings and inputs they were made."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow_scripts.artefact import ArtefactError, read_json
from workflow_scripts.energy.host import cpu_brand
from workflow_scripts.energy.model import StageRecord
from workflow_scripts.energy.sources.nvml import open_nvml


def setting(settings: Mapping[str, Any], key: str) -> Any:
    """Value of a dotted configuration key, such as training.token_budget; None where it is not there."""
    value: Any = settings
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


@dataclass(frozen=True)
class Hardware:
    """What a stage ran on: CPU, number of CPUs of the host, GPUs of the job."""

    cpu: str | None
    cpus: int | None
    gpus: tuple[str, ...]

    @classmethod
    def of(cls, record: StageRecord) -> Hardware:
        """Hardware of a record."""
        origin = record.provenance
        return cls(origin.cpu, origin.cpu_count, tuple(sorted(str(device.name) for device in record.devices)))

    @classmethod
    def here(cls) -> Hardware:
        """The host of this process with the GPUs that its driver shows to this process."""
        gpus: list[dict[str, Any]] = []
        with suppress(OSError):  # no driver, no GPU, or none that can be metered
            gpus = open_nvml(0.0, 1.0)[0].describe(set())
        return cls(cpu_brand(), os.cpu_count(), tuple(sorted(str(gpu["name"]) for gpu in gpus)))

    def comparable(self, other: Hardware) -> bool:
        """Whether joules of one tell those of the other: the same kind of GPU, or without GPUs the same CPUs."""
        if self.gpus or other.gpus:
            return set(self.gpus) == set(other.gpus)
        return (self.cpu, self.cpus) == (other.cpu, other.cpus)

    def __str__(self) -> str:
        gpus = [f"{self.gpus.count(name)} x {name}" for name in sorted(set(self.gpus))]
        return ", ".join([f"{self.cpu or 'unknown CPU'} x {self.cpus}", *gpus])


@dataclass(frozen=True)
class Past:
    """One past stage. `parameters` are those of the model that it has made, where the state folder keeps them."""

    record: StageRecord
    settings: dict[str, Any]
    inputs: dict[str, str]
    parameters: float | None = None

    def cost(self) -> tuple[float, float] | None:
        """Energy [J] and time [s] without what failed attempts have wasted; None without an energy figure."""
        joules, useful = self.record.total_energy_joules, self.record.useful_j
        if not joules or not self.record.duration_seconds:
            return None
        share = useful / joules if useful and self.record.status == "complete" else 1.0
        return joules * share, self.record.duration_seconds * share


def read_record(path: Path) -> StageRecord | None:
    """A stage record; None for a summary's copy of a shared one. Raises ArtefactError naming the file when it is damaged."""
    try:
        content = read_json(path)
        copied = "shared_by" in content or "copied_from" in content
        return None if copied else StageRecord.model_validate(content)
    except (OSError, TypeError, ValueError) as error:
        raise ArtefactError(f"{path} is no stage record: {' '.join(str(error).split())[:150]}") from None


def read_history(root: Path) -> tuple[list[Past], list[str]]:
    """All stages under `root`, newest first, and what was left out and why.

    The state folders hold every run, the results folders those that may have lost their state folder; a record is its
    fingerprint, so copies count once. Records of an older version do not say what they worked on.
    """
    found: dict[str, Past] = {}
    notes, older = [], set()
    patterns = ("state/*/*/record.json", "*/*/stages/*.json", "*/stages/*.json")
    for path in (path for pattern in patterns for path in sorted(root.glob(pattern))):
        try:
            record = read_record(path)
            facts = path.with_name("published.json")
            made = read_json(facts) if path.name == "record.json" and facts.is_file() else {}
        except ArtefactError as error:
            notes.append(f"left out: {error}")
            continue
        if record is None:
            continue
        origin = record.provenance
        fingerprint = origin.fingerprint or str(path)
        if origin.inputs is None:
            older.add(fingerprint)
        else:
            found.setdefault(fingerprint, Past(record, origin.settings or {}, origin.inputs, made.get("parameters")))
    if older:
        notes.append(f"{len(older)} record(s) are of an older version, which does not name settings and inputs: not used")
    return sorted(found.values(), key=lambda past: -past.record.end_time), notes
