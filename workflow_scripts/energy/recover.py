"""Records of stages whose meter was killed, from their ledgers.

    python -m workflow_scripts.energy.recover results/state [...]

For every state folder below the given ones that nobody works on: compute the record from all attempts, write it as
record.json beside the ledgers, and print one line. Changes nothing else; the next attempt counts the same attempts again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from workflow_scripts.artefact import write_json
from workflow_scripts.energy.ledger import LedgerError, read_attempts
from workflow_scripts.energy.model import StageRecord
from workflow_scripts.energy.record import build_record
from workflow_scripts.energy.state import Lock, LockedError


def recover(folder: Path) -> StageRecord:
    """The record of one state folder. Raises LockedError while it is worked on, LedgerError when it cannot be read."""
    lock = Lock(folder)
    lock.acquire()
    try:
        attempts = read_attempts(folder / "attempts", folder.parent.name)
        record = build_record(attempts, {})
        write_json(folder / "record.json", record.model_dump(mode="json", by_alias=True))
    finally:
        lock.release()
    return record


def main() -> int:
    """Recover all folders; returns 1 when one could not be read."""
    if len(sys.argv) < 2:
        print("usage: python -m workflow_scripts.energy.recover STATE_FOLDER …", file=sys.stderr)
        return 2
    failed = 0
    folders = sorted({p.parent for root in sys.argv[1:] for p in Path(root).glob("**/attempts")})
    if not folders:
        print(f"no attempts below {', '.join(sys.argv[1:])}", file=sys.stderr)
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
