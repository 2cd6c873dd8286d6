"""A folder to run the meter in as users run it: a separate process around real child processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jsonschema

from workflow_scripts.energy.ledger import read_attempts
from workflow_scripts.settings.schema import Energy

REPOSITORY = Path(__file__).parents[2]
SCHEMA = json.loads((REPOSITORY / "workflow_scripts" / "energy" / "record_schema.json").read_text())
WORKER = """
import sys, time
from workflow_scripts.progress import Progress
with Progress("loss", total=100) as progress:
    for _ in range({steps}):
        progress.add(loss=10, steps=1)
        progress.saved()
        time.sleep({sleep})
"""


def rapl_tree(root: Path, **joules: float) -> Path:
    for index, (name, value) in enumerate(joules.items()):
        zone = root / f"intel-rapl:{index}"
        zone.mkdir(parents=True, exist_ok=True)
        (zone / "name").write_text(name.replace("_", "-"))
        (zone / "energy_uj").write_text(str(int(value * 1e6)))
        (zone / "max_energy_range_uj").write_text("262143328850")
    return root


class Bench:
    """A folder to meter in, with a RAPL tree instead of CodeCarbon so that stages can be short."""

    def __init__(self, folder: Path, **energy) -> None:
        self.folder = folder
        self.rapl = rapl_tree(folder / "rapl", package_0=10.0, dram=1.0, psys=99.0)
        options = Energy(**{"nvml_poll_interval_ms": 50, "flush_seconds": 0.1, "rapl_root": str(self.rapl)} | energy)
        self.options = options.model_dump_json()

    def command(self, *child: str) -> list[str]:
        base = [sys.executable, "-m", "workflow_scripts.energy.meter", "--stage", "work", "--role", "student"]
        paths = [f"--{n}={self.folder / p}" for n, p in (("record", "record.json"), ("log", "log"), ("state", "state"))]
        return [*base, *paths, "--options", self.options, "--", *child]

    def start(self, *child: str) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(*child),
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )

    def run(self, *child: str) -> subprocess.CompletedProcess:
        process = self.start(*child)
        _, stderr = process.communicate(timeout=60)
        return subprocess.CompletedProcess(child, process.returncode, None, stderr)

    def record(self) -> dict:
        record = json.loads((self.folder / "record.json").read_text())
        jsonschema.validate(record, SCHEMA)
        return record

    def ledgers(self) -> list:
        return [a for f in (self.folder / "state" / "work").glob("*/attempts") for a in read_attempts(f, "work")]

    def wait_for_tick(self, process: subprocess.Popen) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and process.poll() is None:
            mine = [a for a in self.ledgers() if a.start["pid"] == process.pid]
            if mine and mine[0].ticks and mine[0].ticks[-1]["work"]:
                return
            time.sleep(0.05)
        raise AssertionError("no tick with work within 30 s")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def wait_for(find, seconds: float = 20.0):
    """What `find` returns, once it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := find():
            return found
        time.sleep(0.01)
    raise AssertionError(f"nothing within {seconds:g} s")


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
