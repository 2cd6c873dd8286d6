"""Fifty kills at random moments: what was spent is on disk, and the next attempt adds up."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import pytest

from tests.helpers.meter_bench import REPOSITORY, SCHEMA, alive, python, rapl_tree, wait_for
from workflow_scripts.energy.ledger import read_attempts
from workflow_scripts.settings.schema import Energy

WATTS, FLUSH_S, SLACK_S, TRIALS = 100.0, 0.5, 0.5, 50
STAGE = """
import time
from workflow_scripts.progress import Progress
with Progress("loss", total=1000) as progress:
    for _ in range({steps}):
        progress.add(loss=1, steps=1)
        progress.saved()
        time.sleep(0.02)
"""


class Host:
    """A host whose one CPU package draws a constant power, on a counter that is replaced every 10 ms."""

    def __init__(self, root: Path) -> None:
        self.root = rapl_tree(root, package_0=0.0)
        self._zone = self.root / "intel-rapl:0" / "energy_uj"
        self._stop = threading.Event()
        self._begin = time.monotonic()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        new = self._zone.with_name("new")
        while not self._stop.wait(0.01):
            new.write_text(str(int((time.monotonic() - self._begin) * WATTS * 1e6)))
            new.replace(self._zone)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def host(tmp_path: Path):
    host = Host(tmp_path / "rapl")
    yield host
    host.stop()


def meter(folder: Path, rapl: Path, steps: int) -> list[str]:
    options = Energy(
        nvml_poll_interval_ms=50, flush_seconds=FLUSH_S, rapl_root=str(rapl), total_energy_policy="measured"
    ).model_dump_json()
    base = [sys.executable, "-m", "workflow_scripts.energy.meter", "--stage", "work", "--role", "student"]
    paths = [f"--{n}={folder / p}" for n, p in (("record", "record.json"), ("log", "log"), ("state", "state"))]
    return [*base, *paths, "--options", options, "--", *python(STAGE.format(steps=steps))]


def trial(folder: Path, rapl: Path, victim: str, delay: float) -> dict:
    """Kill one attempt, check the ledger, run a second attempt to the end, check the sum. Returns what was seen."""
    folder.mkdir()
    process = subprocess.Popen(meter(folder, rapl, 10_000), cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    ledger = wait_for(lambda: next(folder.glob("state/*/*/attempts/*.jsonl"), None))
    stage = wait_for(lambda: child_of(process.pid))
    time.sleep(delay)
    killed_at = time.time()
    if victim == "term":
        process.send_signal(signal.SIGTERM)
    if victim in ("meter", "both"):
        process.kill()  # first, so that it cannot see the stage end
    if victim in ("stage", "both"):
        with contextlib.suppress(ProcessLookupError):  # the kernel may have ended it with its meter
            os.kill(stage, signal.SIGKILL)
    process.wait(30)
    (attempt,) = read_attempts(ledger.parent, "work")
    known_until = attempt.start["time"] + attempt.last["elapsed_s"]
    second = subprocess.run(meter(folder, rapl, 5), cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    record = json.loads((folder / "record.json").read_text())
    jsonschema.validate(record, SCHEMA)
    joules = [(a.last["joules"].get("cpu") or {"joules": None})["joules"] for a in read_attempts(ledger.parent, "work")]
    return {
        "victim": victim,
        "lost_s": killed_at - known_until,
        "watts": joules[0] / attempt.last["elapsed_s"] if joules[0] and attempt.last["elapsed_s"] > 0.8 else None,
        "sum": sum(j for j in joules if j is not None),
        "record": record["energy"]["cpu"]["joules"],
        "outcomes": [a["outcome"] for a in record["attempts"]],
        "left": [pid for pid in (stage, process.pid) if alive(pid)],
    }


def child_of(pid: int) -> int | None:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return next((int(c) for c in children if b"Progress" in Path(f"/proc/{c}/cmdline").read_bytes()), None)


def test_fifty_kills(tmp_path: Path, host: Host) -> None:
    generator = random.Random(7)
    kinds = ["term", "stage", "meter", "both"]
    plans = [(f"trial{i}", kinds[i % 4], generator.uniform(0.0, 2.0)) for i in range(TRIALS)]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda p: trial(tmp_path / p[0], host.root, p[1], p[2]), plans))
    for result in results:
        assert result["lost_s"] <= FLUSH_S + SLACK_S, result
        assert result["record"] == pytest.approx(result["sum"]), result
        assert result["outcomes"] == [{"term": "signal", "stage": "signal"}.get(result["victim"], "lost"), "completed"], result
        assert result["left"] == [], result
    watts = [result["watts"] for result in results if result["watts"] is not None]
    assert len(watts) > TRIALS / 4 and max(watts) < 1.15 * WATTS, watts
    # a thread of this test is the counter: where the machine stalls it, a ledger rightly has less, but not in many trials
    assert sum(found > 0.85 * WATTS for found in watts) >= 0.9 * len(watts), watts
