"""Summaries written by hand for tests of the comparison."""

from __future__ import annotations

import json
from pathlib import Path

RAPL = ("cpu", "RAPL", 5.0)


def stage(joules: float | None, role: str, fingerprint: str, host: str = "h", parts=None, **more) -> dict:
    """A stage record. `parts` are (component, method, uncertainty %, joules); else all of it is RAPL's at 5 %."""
    parts = parts or ([(*RAPL, joules)] if joules is not None else [])
    energy: dict = {name: {"joules": None, "method": None, "uncertainty_pct": None} for name in ("gpu", "cpu", "dram")}
    for component, method, percent, value in parts:
        energy[component] = {"joules": value, "method": method, "uncertainty_pct": percent}
    boundary = [part[0] for part in parts]
    energy["total"] = {"joules": joules, "class": "measured", "boundary": boundary, "reason": None}
    record = {
        "role": role,
        "status": "complete",
        "start_time": 1000.0,
        "duration_seconds": 10.0,
        "total_energy_joules": joules,
        "energy": energy,
        "provenance": {"fingerprint": fingerprint, "cpu": "x", "host": host},
        "attempts": [{"id": f"{fingerprint}-1", "hosts": [host], "joules": {p[0]: p[3] for p in parts}, "total_j": joules}],
        "devices": [],
        "shared_by": [],
    }
    return record | more


def summary(name: str, pipeline: str, stages: dict[str, dict], **more) -> dict:
    """A summary whose roles and total are the sums of its stages."""
    roles = {}
    for role in ("prerun", "data", "teacher", "student", "evaluation"):
        own = [s["total_energy_joules"] for s in stages.values() if s["role"] == role and "lineage" not in s]
        joules = None if not own or None in own else sum(own)
        kwh = joules / 3.6e6 if joules is not None else None
        roles[role] = {"joules": joules, "kwh": kwh, "uncertainty_kwh": None, "stages": len(own)}
    own = [s["total_energy_joules"] for s in stages.values() if "lineage" not in s]
    total = None if None in own else sum(own)
    content = {
        "schema": "experiment-summary/1",
        "experiment_name": name,
        "pipeline": pipeline,
        "roles": roles,
        "stages": stages,
        "energy": {"class": "measured", "boundary": ["cpu"], "complete": total is not None, "uncertainty_j": None},
        "total_energy_joules": total,
        "total_energy_kwh": total / 3.6e6 if total is not None else None,
        "wasted_j": 0.0,
        "carbon_grams": None,
        "lineage": None,
        "quality": {
            "split_sha256": "s" * 64,
            "teacher": "t",
            "cross_entropy": 3.0,
            "kl_to_teacher": 1.0,
            "top1_agreement": 0.5,
        },
        "references": {"student": {"cross_entropy": 5.0}, "teacher": {"model": "t", "cross_entropy": 2.0}},
        "comparable": {"seed": 1},
        "seedless_fingerprint": f"settings of {name}",
        "deployment": {},
    }
    return content | more


def baseline(name: str = "gold", student: float = 1000.0, **more) -> dict:
    """Gold data: a training and nothing else."""
    return summary(
        name, "baseline", {"student_train": stage(student, "student", f"train {name}", **more.pop("stage", {}))}, **more
    )


def kd(name: str, teacher: float | None, student: float, cache: str = "cache", **more) -> dict:
    """A teacher's cache and a training on it."""
    options = more.pop("stage", {})
    stages = {
        "logit_caching": stage(teacher, "teacher", cache, **options),
        "student_train": stage(student, "student", f"train {name}", **options),
    }
    return summary(name, "kd", stages, **more)


def served(joules_per_token: float, percent: float = 5.0, instrument: str = "RAPL", whose: str = "h") -> dict:
    """An entry of `deployment`."""
    part = {
        "component": "cpu",
        "joules_per_token": joules_per_token,
        "instrument": instrument,
        "whose": whose,
        "uncertainty_pct": percent,
    }
    return {"joules_per_token": joules_per_token, "boundary": ["cpu"], "components": [part]}


def write(folder: Path, *summaries: dict) -> list[str]:
    """Write summaries; returns their paths."""
    paths = []
    for content in summaries:
        path = folder / content["experiment_name"] / "experiment_summary.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        paths.append(str(path))
    return paths
