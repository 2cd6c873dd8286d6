"""Sums over the stage records of one experiment: what a summary says of its records alone."""

from __future__ import annotations

from typing import Any

from workflow_scripts.accounting.model import ROLES, RoleEnergy
from workflow_scripts.artefact import RANDOM_WEIGHTS
from workflow_scripts.energy.uncertainty import instrument, propagate

CLASSES = ("measured", "integrated", "modelled", "unavailable")
TOKEN_TYPES = ("loss", "input", "generated", "padded", "discarded")


def added_up(records: dict[str, dict[str, Any]], training: dict[str, Any] | None) -> dict[str, Any]:
    """What a summary says of its records alone: times, tokens, energies by role, and warnings.

    Rates per token are those of the `training` record, null without one.
    """
    known = [r for r in records.values() if r["total_energy_joules"] is not None]
    total = sum_of([r["total_energy_joules"] for r in records.values()])
    unknown = sorted(stage for stage, r in records.items() if r["total_energy_joules"] is None)
    duration = sum(r["duration_seconds"] for r in records.values())
    boundaries = _boundaries(known)
    spread = uncertainty(known)
    trained = training or dict.fromkeys(("tokens_processed", "tokens_unit", "joules_per_token"))
    tokens = trained["tokens_processed"]
    return {
        "start_time": min(r["start_time"] for r in records.values()),
        "end_time": max(r["end_time"] for r in records.values()),
        "total_duration_seconds": duration,
        "total_tokens_processed": tokens,
        "tokens_unit": trained["tokens_unit"],
        "tokens": {t: sum_of([r["work"][t] for r in records.values() if r["work"][t] is not None]) for t in TOKEN_TYPES},
        "throughput": {stage: r["tokens_per_second"] for stage, r in records.items()},
        "total_gpu_energy_joules": sum_of([r["gpu_energy_joules"] for r in known]),
        "total_cpu_energy_joules": sum_of([r["cpu_energy_joules"] for r in known]),
        "total_energy_joules": total,
        "total_energy_kwh": total / 3.6e6 if total is not None else None,
        "joules_per_token": trained["joules_per_token"],
        "overall_joules_per_token": total / tokens if total is not None and tokens else None,
        "overall_tokens_per_second": tokens / duration if tokens else None,
        "energy": {
            "class": _worst_class(known),
            "boundary": boundaries,
            "complete": not unknown,
            "uncertainty_j": spread if total is not None else None,
            "uncertainty_pct": 100 * spread / total if total else None,
        },
        "useful_j": sum_of([r["useful_j"] for r in known]),
        "wasted_j": sum_of([r["wasted_j"] for r in known]),
        "carbon_grams": sum_of([r["carbon"]["grams"] for r in records.values()]),
        "roles": {role: _role([r for r in records.values() if r["role"] == role]) for role in ROLES},
        "warnings": _warnings(records, boundaries),
    }


def _warnings(records: dict[str, dict[str, Any]], boundaries: list[str]) -> list[str]:
    found = [(stage, text) for stage, r in records.items() for text in r["warnings"]]
    warnings = [RANDOM_WEIGHTS] if any(text == RANDOM_WEIGHTS for _, text in found) else []
    warnings += [f"{stage}: {text}" for stage, text in found if text != RANDOM_WEIGHTS]
    unknown = sorted(stage for stage, r in records.items() if r["total_energy_joules"] is None)
    warnings += [f"{stage}: no energy figure, so there is no total" for stage in unknown]
    unfinished = {stage: r["status"] for stage, r in records.items() if r["status"] != "complete"}
    warnings += [f"{stage}: its record is {status}: its energy is a lower bound" for stage, status in unfinished.items()]
    return warnings + ([f"stages have different boundaries: {', '.join(boundaries)}"] if len(boundaries) > 1 else [])


def _role(members: list[dict[str, Any]]) -> RoleEnergy:
    """The stages of one role; energies are null when one of them has none, class and boundary are those of the others."""
    known = [r for r in members if r["total_energy_joules"] is not None]
    joules = sum_of([r["total_energy_joules"] for r in members])
    return RoleEnergy.model_validate(
        {
            "joules": joules,
            "kwh": joules / 3.6e6 if joules is not None else None,
            "uncertainty_kwh": uncertainty(members) / 3.6e6 if joules is not None else None,
            "stages": len(members),
            "useful_j": sum_of([r["useful_j"] for r in members]),
            "wasted_j": sum_of([r["wasted_j"] for r in members]),
            "class": _worst_class(known) if members else None,
            "boundary": _boundaries(known),
        }
    )


def _worst_class(known: list[dict[str, Any]]) -> str:
    return max((r["energy"]["total"]["class"] for r in known), key=CLASSES.index, default="unavailable")


def _boundaries(known: list[dict[str, Any]]) -> list[str]:
    return sorted({"+".join(r["energy"]["total"]["boundary"]) for r in known})


def uncertainty(records: list[dict[str, Any]]) -> float:
    """Uncertainty [J] of the sum of the records' totals."""
    parts = []
    for record in records:
        for name in record["energy"]["total"]["boundary"]:
            component = record["energy"][name]
            if component["uncertainty_pct"] is not None:
                parts.append((instrument(component["method"]), component["joules"], component["uncertainty_pct"]))
    return propagate(parts)


def sum_of(values: list[float | None]) -> float | None:
    """Sum; None as soon as one member is unknown or there is none."""
    return None if not values or any(v is None for v in values) else sum(v for v in values if v is not None)
