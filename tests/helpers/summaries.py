"""Summaries written by hand for tests of the comparison."""

from __future__ import annotations

import json
from pathlib import Path

from workflow_scripts.accounting.model import ExperimentSummary

RAPL = ("cpu", "RAPL", 5.0)


TOKENS = ("loss", "input", "generated", "padded", "discarded")
CLASS_OF = {"RAPL": "measured", "NVML": "measured", "CodeCarbon": "modelled"}


def stage(joules: float | None, role: str, fingerprint: str, host: str = "h", parts=None, **more) -> dict:
    """A stage record as the meter writes it. `parts` are (component, method, uncertainty %, joules); else RAPL's, 5 %."""
    parts = parts or ([(*RAPL, joules)] if joules is not None else [])
    energy: dict = {name: component(None) for name in ("gpu", "cpu", "dram", "node")}
    for name, method, percent, value in parts:
        energy[name] = component(value, method, percent)
    boundary = [part[0] for part in parts]
    energy["total"] = {"joules": joules, "class": "measured" if parts else "unavailable", "boundary": boundary, "reason": None}
    loss = more.pop("loss", None)
    start = more.get("start_time", 1000.0)
    attempt = {
        **dict.fromkeys(("exit_code", "signal", "useful_j", "wasted_j", "sampling", "trace", "work", "resumed_from")),
        **{"id": f"{fingerprint}-1", "outcome": "completed", "end_source": "meter", "slurm": {}, "devices": {}},
        **{"start_time": start, "end_time": start + 10, "duration_seconds": 10.0, "host": host, "hosts": [host]},
        "joules": {p[0]: p[3] for p in parts},
        "total_j": joules,
    }
    nothing = ("experiment", "pipeline", "idle", "above_idle_j", "gpu_peak_power_watts")
    record = {
        **dict.fromkeys((*nothing, "codecarbon_energy_kwh", "codecarbon_emissions_kg")),
        "schema": "energy-stage/1",
        "stage_id": "s",
        "stage_name": "s",
        "role": role,
        "status": "complete",
        "start_time": start,
        "end_time": start + 10,
        "duration_seconds": 10.0,
        "span_seconds": 10.0,
        "nvml_poll_interval_ms": 500,
        "total_energy_joules": joules,
        "total_energy_kwh": joules / 3.6e6 if joules is not None else None,
        "gpu_energy_joules": energy["gpu"]["joules"],
        "cpu_energy_joules": energy["cpu"]["joules"],
        "useful_j": joules,
        "wasted_j": 0.0 if joules is not None else None,
        "energy": energy,
        "tokens_processed": loss,
        "tokens_unit": "loss" if loss else None,
        "tokens_per_second": loss / 10 if loss else None,
        "joules_per_token": joules / loss if loss and joules else None,
        "joules_per_token_by_type": {},
        "work": dict.fromkeys((*TOKENS, "examples", "steps")) | {"loss": loss},
        "metrics": {},
        "overhead": {},
        "carbon": {**dict.fromkeys(("grams", "intensity_g_per_kwh", "source", "year", "region", "reason")), "pue": 1.0},
        "provenance": {"fingerprint": fingerprint, "cpu": "x", "host": host},
        "attempts": [attempt],
        "devices": [],
        "warnings": [],
    }
    return record | more


def component(joules: float | None, method: str | None = None, percent: float | None = None) -> dict:
    """A component's figure; null with a reason without joules."""
    kind = CLASS_OF[method.split()[0]] if method else "unavailable"
    reason = None if joules is not None else "not there"
    return {"joules": joules, "class": kind, "method": method, "scope": "host", "uncertainty_pct": percent, "reason": reason}


def summary(name: str, pipeline: str, stages: dict[str, dict], **more) -> dict:
    """A summary of these stages; what follows from them is computed when it is read."""
    quality = {"split_sha256": "s" * 64, "teacher": "t", "cross_entropy": 3.0, "kl_to_teacher": 1.0, "top1_agreement": 0.5}
    content = {
        "schema": "experiment-summary/1",
        "experiment_name": name,
        "pipeline": pipeline,
        "stages": stages,
        "lineage": None,
        "quality": quality,
        "references": {"student": {"cross_entropy": 5.0}, "teacher": {"model": "t", "cross_entropy": 2.0}},
        "comparable": {"seed": 1},
        "seedless_fingerprint": f"settings of {name}",
        "deployment": {},
    }
    return content | more


def read(content: dict) -> ExperimentSummary:
    """A summary as the program reads it from its file."""
    return ExperimentSummary.model_validate(content)


def policy_cost(kwh: float, policy: str = "gold") -> dict:
    """What training a starting policy has cost."""
    return {"policy": policy, "student_kwh": kwh, "teacher_kwh": None, "total_energy_kwh": kwh}


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
    part = {"component": "cpu", "joules_per_token": joules_per_token, "instrument": instrument, "whose": whose}
    part["uncertainty_pct"] = percent
    nothing = {"tokens": None, "seconds": None, "watts": None, "method": None, "reason": None}
    return {"joules_per_token": joules_per_token, "boundary": ["cpu"], "components": [part], **nothing}


def write(folder: Path, *summaries: dict) -> list[str]:
    """Write summaries; returns their paths."""
    paths = []
    for content in summaries:
        path = folder / content["experiment_name"] / "experiment_summary.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        paths.append(str(path))
    return paths


def measured(
    name: str, seed: int, points: list[tuple[float, float]], teacher: float | None = None, rows: int = 40, **more
) -> dict:
    """A run with intermediate evaluations: (joules, loss) of each, the last one the final model's."""
    *earlier, (whole, final) = points
    harder = [(0.01 * (number - (rows - 1) / 2)) for number in range(rows)]
    sums = {"cross_entropy": [10 * (final + d) for d in harder], "kl_to_teacher": [1.0] * rows, "top1_agreement": [5] * rows}
    content: dict = {
        "comparable": {"seed": seed, "token budget": 100},
        "seedless_fingerprint": f"settings of {name}",
        "quality": {"split_sha256": "s" * 64, "cross_entropy": final, "rows": {"tokens": [10] * rows, **sums}},
        "evaluations_on_the_way": {
            **{"count": len(earlier), "seconds": 1.0, "joules": 0.0, "reason": None},
            "points": [{"step": i, "eval_loss": q, "training_joules": j} for i, (j, q) in enumerate(earlier, 1)],
        },
        **more,
    }
    label = f"{name}_seed{seed}"
    return (
        baseline(label, whole, **content) if teacher is None else kd(label, teacher, whole, cache=f"cache of {name}", **content)
    )


def course(joules: float, loss: float, evaluations: int = 6) -> list[tuple[float, float]]:
    """Points of a training that ends at `joules` with `loss`, which falls as the root of the joules rises."""
    shares = [(i + 1) / evaluations for i in range(evaluations)]
    return [(joules * share, loss + (share**-0.5 - 1)) for share in shares]
