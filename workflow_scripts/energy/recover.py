"""Records of stages whose meter was killed, from their ledgers.

    python -m workflow_scripts.energy.recover results/state [...]

For every state folder below the given ones that nobody works on: compute the record from all attempts, write it as
record.json beside the ledgers, and print one line. Changes nothing else; the next attempt counts the same attempts again.

The work of a stage in parts lies in `parts/<n>-of-<m>`: each part gets a record of its own, and once a merge was tried, the
stage's record adds up the newest merge and all parts, as the meter's does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from workflow_scripts.artefact import write_json
from workflow_scripts.energy.ledger import LedgerError, at_one_merge, read_attempts, read_parts
from workflow_scripts.energy.model import StageRecord
from workflow_scripts.energy.record import build_record
from workflow_scripts.energy.state import Lock, LockedError


def is_part(folder: Path) -> bool:
    """Whether a state folder is that of one part of a stage."""
    return folder.parent.name == "parts"


def recover(folder: Path) -> StageRecord:
    """The record of the state folder of a stage, its parts included, or of one part.

    Raises LockedError while it or one of its parts is worked on, LedgerError when it cannot be read.
    """
    stage = folder.parents[2].name if is_part(folder) else folder.parent.name
    lock = Lock(folder)
    lock.acquire()
    try:
        for part in sorted(folder.glob("parts/*")):
            if (owner := Lock(part).holder()) is not None:
                raise LockedError(f"part {part.name} is being worked on by process {owner.get('pid')} on {owner.get('host')}")
        attempts = read_attempts(folder / "attempts", stage)
        if not attempts:
            raise LedgerError("no attempt has a whole line: nothing is known of it")
        parts = [] if is_part(folder) else read_parts(folder, stage)
        record = build_record(at_one_merge(attempts, attempts[-1].start["provenance"]) if parts else attempts, {}, parts)
        write_json(folder / "record.json", record.model_dump(mode="json", by_alias=True))
    finally:
        lock.release()
    return record


def main(arguments: list[str] | None = None) -> int:
    """Recover all folders; returns 1 when one could not be read."""
    parser = argparse.ArgumentParser(prog="workflow_scripts.energy.recover", allow_abbrev=False)
    parser.add_argument("folders", nargs="+", metavar="STATE_FOLDER")
    roots = parser.parse_args(arguments).folders
    failed = 0
    folders = sorted({p.parent for root in roots for p in Path(root).absolute().glob("**/attempts")})
    if not folders:
        print(f"no attempts below {', '.join(roots)}", file=sys.stderr)
        return 1
    for folder in folders:
        try:
            record = recover(folder)
        except (LockedError, LedgerError) as error:
            failed += isinstance(error, LedgerError)
            print(f"{folder}: {error}")
            continue
        outcomes = ", ".join(attempt.outcome for attempt in record.attempts)
        joules = "unknown" if record.total_energy_joules is None else f"{record.total_energy_joules:.0f} J"
        print(f"{folder}: {record.status}, {joules}, attempts: {outcomes}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
