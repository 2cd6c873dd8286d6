"""Attempt ledgers written by hand, through the meter's own writer: joules are RAPL's of the CPU."""

from __future__ import annotations

import json
from pathlib import Path

from tests.unit.energy.test_record import figure
from workflow_scripts.energy.ledger import LedgerWriter, read_attempts, read_parts
from workflow_scripts.energy.record import build_record
from workflow_scripts.settings.schema import Energy

INPUT = {"bytes": 1, "mtime_ns": 1, "sha256": "0" * 64}


class Ledgers:
    """A results folder with state folders; every attempt starts an hour after the one written before it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = 0

    def folder(self, stage: str, mark: str, part: str | None = None) -> Path:
        folder = self.root / "state" / stage / mark
        return folder / "parts" / part if part else folder

    def attempt(
        self,
        stage: str,
        mark: str,
        joules: float | None,
        outcome: str | None = "completed",
        experiment: str | None = None,
        part: str | None = None,
        parts: int | None = None,
        output: str | None = None,
        files: tuple[str, ...] = (),
        record: str | None = None,
        saved: float | None = None,
        resumed: int | None = None,
    ) -> Path:
        """One attempt; `outcome` None leaves it without an end, as SIGKILL does."""
        self.clock += 1
        start = {
            **{"stage": stage, "role": "student" if experiment else "teacher", "part": part, "parts": parts},
            **{"experiment": experiment, "pipeline": "kd" if experiment else None, "scope": "host", "idle": None},
            **{"attempt": f"a{self.clock}", "time": 3600.0 * self.clock, "host": "h", "pid": 1, "slurm": {}, "devices": []},
            "energy": Energy(carbon_intensity_g_per_kwh=100.0).model_dump(),
            "provenance": {"fingerprint": mark, "cpu": "x", "cpu_count": 2, "files": dict.fromkeys(files, INPUT)},
            **{name: path for name, path in (("record", record), ("output", output)) if path},
        }
        work = {"work": {"loss": 10}, "unit": "loss", "durable": {}, "resumed": {"loss": resumed}, "metrics": {}}
        line = {
            "elapsed_s": 100.0,
            "joules": {"gpu": figure(None), "cpu": figure(joules), "dram": figure(None)},
            "work": work | {"resumed": {"loss": resumed} if resumed else None},
            "saved_joules": {"cpu": saved} if saved is not None else None,
        }
        path = self.folder(stage, mark, part) / "attempts" / f"a{self.clock}.jsonl"
        ledger = LedgerWriter(path, start)
        ledger.append({"event": "tick", **line})
        if outcome:
            ledger.append({"event": "end", **line, "outcome": outcome, "exit_code": 0, "signal": None})
        ledger.close()
        return path

    def publish(self, stage: str, mark: str, path: str, **more) -> Path:
        """Write the stage's record where the rule would."""
        folder = self.folder(stage, mark)
        record = build_record(read_attempts(folder / "attempts", stage), {}, read_parts(folder, stage))
        destination = self.root / path
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.write_text(json.dumps(record.model_dump(mode="json", by_alias=True) | more))
        return destination
