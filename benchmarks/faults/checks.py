"""What must hold after a fault: the same results, the whole bill, nothing left behind."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults.watch import LOOK_EVERY_S, Stage
from workflow_scripts.artefact import sha256

ROOMS = ("models", "corpus", "teacher", "demo_*")
CONTENT = ("*.safetensors", "*.parquet", "manifest.json")
EVALUATIONS = ("demo_*/evaluation.json", "reference/*/evaluation.json")
TIMINGS = ("start_time", "seconds", "tokens_per_second")
CLOCK_PCT = 2.0
KERNEL_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def results(folder: Path, known: Path | None = None, digests: dict[str, str] | None = None) -> dict[str, str]:
    """Digest of everything that an experiment is run for, by path; a file that is linked to `known` has its digest."""
    found = {}
    for path in _files(folder):
        name = str(path.relative_to(folder))
        twin = known / name if known else None
        if twin is not None and digests and twin.exists() and twin.samefile(path):
            found[name] = digests[name]
        elif path.name == "evaluation.json":
            found[name] = _digest(json.dumps(_without_timings(json.loads(path.read_text())), sort_keys=True).encode())
        else:
            found[name] = sha256(path)
    return found


def _files(folder: Path) -> Iterator[Path]:
    patterns = [*EVALUATIONS, *(f"{room}/**/{name}" for room in ROOMS for name in CONTENT)]
    for pattern in patterns:
        yield from (path for path in folder.glob(f"results/{pattern}") if "checkpoints" not in path.parts)


def _without_timings(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Generation is repeated, all rounds alike, until it has taken its seconds: their number is a matter of time, too."""
    found = dict(evaluation["generation"])
    tokens = found.pop("generated_tokens") / found.pop("rounds")
    speed = {key: value for key, value in found.items() if key not in TIMINGS}
    return evaluation | {"generation": speed | {"tokens_per_round": tokens}}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def same_results(folder: Path, base: Path, expected: dict[str, str]) -> list[str]:
    """Files that are missing, differ, or should not be there."""
    found = results(folder, base, expected)
    return [
        f"{name} {'is missing' if name not in found else 'should not be there' if name not in expected else 'differs'}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]


def locks(folder: Path) -> list[str]:
    """Locks that nobody holds any more."""
    found = [*folder.glob("results/state/**/lock*"), *folder.glob(".snakemake/locks/*")]
    return [f"orphan lock {path.relative_to(folder)}" for path in found]


def leftovers(folder: Path) -> list[str]:
    """Half-made files that nobody will use; they cost nothing but space."""
    patterns = ("**/.*.build", "**/.*.old.*", "**/.*.json.*", "**/*.json.[0-9]*")
    return sorted({str(path.relative_to(folder)) for pattern in patterns for path in folder.glob(f"results/{pattern}")})


@dataclass
class Bill:
    """Seconds and joules of all attempts of a trial, by the external clock and by the records."""

    clock: float
    seconds: float
    joules: float
    allowed: float
    problems: list[str]

    @property
    def difference_pct(self) -> float:
        """Relative difference of the attempts' summed time to the external clock, in per cent."""
        return 100 * abs(self.seconds - self.clock) / self.clock if self.clock else 0.0


def bill(folder: Path, since: float, stages: Iterable[Stage], watts: float, energy: dict[str, Any]) -> Bill:
    """Compare what /proc has seen since `since` with the records.

    The sums may differ by 2 %, or by a sampling period and a tick of the kernel's clock for each attempt, and by a flush,
    which falls on the next sample, for each whose meter was killed.
    """
    attempts = {a["id"]: a for record in _records(folder) for a in record["attempts"] if a["start_time"] >= since}
    by_meter = {int(id_.rpartition("-")[2]): a for id_, a in attempts.items()}
    problems, clock = [], 0.0
    seen = set()
    for stage in stages:
        assert stage.meter is not None
        seen.add(stage.meter.pid)
        clock += stage.seconds
        if stage.meter.pid not in by_meter:
            problems.append(f"the attempt of meter {stage.meter.pid} ({stage.module}, {stage.seconds:.1f} s) is in no record")
    for pid, attempt in by_meter.items():
        if pid not in seen and attempt["duration_seconds"] > 5 * LOOK_EVERY_S:
            problems.append(f"attempt {attempt['id']} is in a record, but no such process was seen")
    seconds = sum(a["duration_seconds"] for a in attempts.values())
    joules = sum(a["joules"].get("cpu") or 0.0 for a in attempts.values())  # of the test's counters; DRAM is CodeCarbon's
    killed = sum(a["end_source"] == "ledger" for a in attempts.values())
    period = energy["nvml_poll_interval_ms"] / 1000
    unseen = (period + KERNEL_TICK_S) * len(attempts) + (energy["flush_seconds"] + period) * killed
    allowed = max(CLOCK_PCT / 100 * clock, unseen)
    found = Bill(clock, seconds, joules, allowed, problems)
    for name, value in (("seconds", seconds), ("joules / watts", joules / watts)):
        if abs(value - clock) > found.allowed:
            problems.append(f"{name} of all attempts {value:.2f}, external clock {clock:.2f} s, allowed {found.allowed:.2f}")
    problems += _sums(folder)
    return found


def _records(folder: Path) -> list[dict[str, Any]]:
    paths = [*folder.glob("results/**/stages/*.json"), *folder.glob("results/models/*/checks/*.record.json")]
    found = [json.loads(path.read_text()) for path in paths]
    return [record for record in found if "attempts" in record]


def _sums(folder: Path) -> list[str]:
    """Records whose totals are not those of their attempts."""
    problems = []
    for record in _records(folder):
        joules = sum(a["total_j"] or 0.0 for a in record["attempts"])
        if abs(joules - (record["total_energy_joules"] or 0.0)) > 1e-6 * joules:
            problems.append(f"record of {record['stage_name']}: {record['total_energy_joules']} J, its attempts {joules} J")
    return problems


def summaries(folder: Path) -> list[str]:
    """Summaries that say something else than their stages' records."""
    problems = []
    for path in folder.glob("results/demo_*/experiment_summary.json"):
        for name, record in json.loads(path.read_text())["stages"].items():
            own = path.parent / "stages" / f"{name}.json"
            if own.is_file() and json.loads(own.read_text())["total_energy_joules"] != record["total_energy_joules"]:
                problems.append(f"{path.parent.name}: the summary's joules of {name} are not its record's")
    return problems
