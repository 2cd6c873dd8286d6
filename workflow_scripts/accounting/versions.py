"""Versions of stages: everything that was spent in one state folder, and whether its result still stands.

A state folder is named by the fingerprint of what the stage was made from, so another configuration, input or source has
another folder. `current` is a version whose fingerprint a record in the results names, `superseded` one that was finished and
is named by none, `unfinished` one that no attempt has brought to its end, `in progress` one that a living meter holds.

A shared artefact is kept when the configuration moves on, record and all. It is superseded, too, once every stage that ever
used it has itself been replaced by a newer version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from workflow_scripts.accounting.model import SummaryStage
from workflow_scripts.artefact import ArtefactError, read_json
from workflow_scripts.energy.ledger import HOSTS, Attempt, LedgerError, in_order, read_with_hosts
from workflow_scripts.energy.model import AttemptRecord, StageRecord
from workflow_scripts.energy.record import build_record
from workflow_scripts.energy.state import Lock

Status = Literal["current", "superseded", "unfinished", "in progress", "current, by its record alone"]  # last: without ledger
RECORD_SCHEMA = SummaryStage.model_fields["schema_"].default
RECORDS = ("*/stages/*.json", "*/*/stages/*.json", "models/*/checks/*.record.json")


@dataclass(eq=False)
class Version:
    """One version of a stage. `records` is that of all its attempts, or one for each part while the parts are not merged."""

    stage: str
    fingerprint: str
    records: list[StageRecord]
    starts: list[dict[str, Any]]  # first ledger line of each attempt at the stage, or at its parts while there is no merge
    status: Status

    @property
    def attempts(self) -> list[AttemptRecord]:
        """Every attempt at the stage and at its parts, once."""
        return [attempt for record in self.records for attempt in record.attempts]

    @property
    def began(self) -> float:
        """Start of the first attempt [s since the epoch]."""
        return min(attempt.start_time for attempt in self.attempts)

    @property
    def start(self) -> dict[str, Any]:
        """How the newest attempt began."""
        return self.starts[-1]

    @property
    def outputs(self) -> list[str]:
        """What its attempts make: artefacts and records; merges of one teacher's work by other filters are several."""
        return [path for start in self.starts for path in (start.get("output"), start.get("record")) if path]

    @property
    def files(self) -> set[str]:
        """What it has read."""
        return set(self.start["provenance"].get("files") or {})

    @property
    def place(self) -> tuple[str, str]:
        """What a newer version replaces: the stage at the place where it writes."""
        named = (self.start.get(key) for key in ("output", "record", "experiment"))
        return self.stage, next((name for name in named if name), "")


@dataclass
class Found:
    """What lies in a results folder.

    `damaged` names files that were left out, with the reason, `silent` ledgers without a line, `orphans` are records whose
    ledgers are gone or unreadable, `imported` counts those of work that was not done here.
    """

    versions: list[Version] = field(default_factory=list)
    damaged: list[dict[str, str]] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    orphans: list[StageRecord] = field(default_factory=list)
    imported: int = 0


def read_versions(root: Path) -> Found:
    """All versions under `root`/state, by stage and start. Changes nothing on disk."""
    found = Found()
    records = _records(root, found)
    folders = sorted(path for path in (root / "state").glob("*/*") if path.is_dir())
    versions = [version for folder in folders if (version := _version(folder, records, found))]
    found.versions = sorted(versions, key=lambda v: (v.stage, v.began, v.fingerprint))
    _supersede_unused(found.versions)
    known = {version.fingerprint for version in found.versions}
    originals = {
        fingerprint: r for fingerprint, each in records.items() for r in each if r.copied_from is None and r.shared_by is None
    }
    alone = [record for fingerprint, record in sorted(originals.items()) if fingerprint not in known]
    found.orphans = [record for record in alone if record.provenance.imported is None]
    found.imported = len(alone) - len(found.orphans)
    return found


def _records(root: Path, found: Found) -> dict[str, list[SummaryStage]]:
    """Stage records in the results by their fingerprint, copies of shared ones among them."""
    by_fingerprint: dict[str, list[SummaryStage]] = {}
    for path in sorted({path for pattern in RECORDS for path in root.glob(pattern)}):
        if (record := _record(path, found)) and (fingerprint := record.provenance.fingerprint):
            by_fingerprint.setdefault(fingerprint, []).append(record)
    return by_fingerprint


def _record(path: Path, found: Found) -> SummaryStage | None:
    """A stage record; None for anything else. Damage is noted."""
    try:
        content = read_json(path)
        return SummaryStage.read(path) if isinstance(content, dict) and content.get("schema") == RECORD_SCHEMA else None
    except (ArtefactError, OSError, UnicodeDecodeError) as error:
        found.damaged.append({"path": str(path), "reason": str(error)})
        return None


def _version(folder: Path, records: dict[str, list[SummaryStage]], found: Found) -> Version | None:
    """The version of one state folder; None where nothing was spent that is known."""
    stage = folder.parent.name
    own = _attempts(folder / "attempts", stage, found)
    parts = [group for path in sorted(folder.glob("parts/*")) if (group := _attempts(path / "attempts", stage, found))]
    if not own and not parts:
        return None
    made = [build_record(own, {}, parts)] if own else [build_record(group, {}) for group in parts]
    starts = [attempt.start for attempt in (own or parts[-1])]
    held = any(Lock(path).holder() is not None for path in (folder, *folder.glob("parts/*")))
    finished = any(attempt.last.get("outcome") == "completed" for attempt in own)
    status: Status = "in progress" if held else "unfinished"
    if not held and finished:
        status = "current" if folder.name in records or _names(starts[-1].get("record"), folder.name) else "superseded"
    return Version(stage, folder.name, made, starts, status)


def _names(path: str | None, fingerprint: str) -> bool:
    """Whether the record that a ledger points to (outside the results, by output.run_dir) has this fingerprint."""
    if path is None or not Path(path).is_file():
        return False
    record = _record(Path(path), Found())
    return record is not None and record.provenance.fingerprint == fingerprint


def _attempts(folder: Path, stage: str, found: Found) -> list[Attempt]:
    """Readable attempts; a damaged ledger is noted and costs the others nothing."""
    good = []
    for path in sorted(folder.glob("*.jsonl")):
        try:
            attempt = read_with_hosts(path, stage)
            if attempt is None:
                found.silent.append(str(path))
                continue
            build_record([attempt], {})
            good.append(attempt)
        except (LedgerError, OSError) as error:
            found.damaged.append({"path": str(path), "reason": str(error).removeprefix(f"{path}: ")})
        except (AttributeError, KeyError, TypeError, ValueError, StopIteration) as error:
            reason = f"a line lacks what every ledger has ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
            found.damaged.append({"path": str(path), "reason": reason})
    hosts = {host.path for attempt in good for host in attempt.hosts}
    for path in sorted((folder / HOSTS).glob("*.jsonl")):
        if path not in hosts:
            found.damaged.append({"path": str(path), "reason": "a further host's ledger whose attempt cannot be read"})
    return in_order(good)


def _supersede_unused(versions: Sequence[Version]) -> None:
    """Mark shared artefacts as superseded whose every user has been replaced by a newer version."""
    kept = [v for v in versions if v.status == "current" and v.start.get("experiment") is None]
    users = {v: {u for u in versions if u is not v and not u.files.isdisjoint(v.outputs)} for v in kept}
    newest: dict[tuple[str, str], float] = {}
    for version in versions:
        newest[version.place] = max(version.began, newest.get(version.place, version.began))
    # versions whose place a newer one has taken
    gone = {v for v in versions if v.status in ("superseded", "unfinished") and v.began < newest[v.place]}
    while replaced := {v for v in kept if v not in gone and users[v] and users[v] <= gone}:
        for version in replaced:
            version.status = "superseded"
        gone |= replaced
