"""Tidy tables: one row per experiment, one per experiment and stage, each as csv and parquet. Unknown is empty."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from workflow_scripts.accounting.costs import StageKey, charged, stage_key, total_figure, with_lineage
from workflow_scripts.accounting.errors import Figure, figure_of
from workflow_scripts.accounting.fairness import hardware
from workflow_scripts.accounting.load import training_stage
from workflow_scripts.accounting.qualities import task_metrics
from workflow_scripts.accounting.runs import find, group


def experiments(summaries: list[dict[str, Any]], shares: dict[StageKey, list[str]]) -> pd.DataFrame:
    """One row per experiment; energies in kWh by role, J per loss token of the training, quality on held-out text.

    `teacher_users` counts the compared experiments that use the teacher's output, `teacher_share_kwh` is its energy divided by
    them; `charged_kwh` divides every stage so, and sums up to the campaign's total.
    """
    groups = group(summaries)
    return pd.DataFrame([_experiment(s, shares) | {"group": _group_of(groups, s)} for s in summaries])


def _experiment(s: dict[str, Any], shares: dict[StageKey, list[str]]) -> dict[str, Any]:
    training = s["stages"].get(training_stage(s)) or {}
    quality, references = s.get("quality") or {}, s.get("references") or {}
    preference = quality.get("preference") or {}
    whole = not s.get("problems")
    total = s.get("total_energy_kwh") if whole else None
    uncertainty, share = s["energy"].get("uncertainty_j"), charged(s, shares) if whole else None
    users = teacher_users(s, shares)
    whole_cost, spent, tokens = total_figure(s), figure_of(training), training.get("tokens_processed")
    teacher_kwh = s["roles"].get("teacher", {}).get("kwh")
    return {
        "experiment": s["experiment_name"],
        "pipeline": s["pipeline"],
        **{f"{role}_kwh": entry["kwh"] for role, entry in s["roles"].items()},
        **{f"{role}_uncertainty_kwh": s["roles"].get(role, {}).get("uncertainty_kwh") for role in ("teacher", "student")},
        "total_kwh": total,
        "total_uncertainty_kwh": None if uncertainty is None or total is None else uncertainty / 3.6e6,
        "lineage_kwh": s["lineage"]["total_energy_kwh"] if s.get("lineage") else None,
        "total_with_lineage_kwh": with_lineage(s, total),
        "total_with_lineage_uncertainty_kwh": None if whole_cost is None else half_width(whole_cost, 3.6e6),
        "wasted_kwh": s["wasted_j"] / 3.6e6 if s.get("wasted_j") is not None else None,
        "carbon_g": s.get("carbon_grams"),
        "training_tokens": tokens,
        "joules_per_token": training.get("joules_per_token"),
        "joules_per_token_uncertainty": None if spent is None or not tokens else half_width(spent, tokens),
        "tokens_per_second": training.get("tokens_per_second"),
        "cross_entropy": quality.get("cross_entropy"),
        "untrained_cross_entropy": (references.get("student") or {}).get("cross_entropy"),
        "teacher_cross_entropy": (references.get("teacher") or {}).get("cross_entropy"),
        "kl_to_teacher": quality.get("kl_to_teacher"),
        "top1_agreement": quality.get("top1_agreement"),
        "preference_margin": preference.get("mean_margin"),
        "preference_accuracy": preference.get("accuracy"),
        "energy_class": s["energy"].get("class"),
        "boundary": "; ".join(s["energy"].get("boundary") or []),
        "seed": (s.get("comparable") or {}).get("seed"),
        "hardware": hardware(s),
        "teacher_users": users,
        "teacher_share_kwh": teacher_kwh / users if teacher_kwh is not None and users else None,
        "charged_kwh": share / 3.6e6 if share is not None else None,
        "generated_j_per_token": ((s.get("deployment") or {}).get("model") or {}).get("joules_per_token"),
        "problems": "; ".join((*s.get("problems", []), *s.get("partial", []))),
        **{name: entry["value"] for name, entry in task_metrics(quality).items()},
    }


def half_width(figure: Figure, unit: float) -> float | None:
    """Half-width by the instruments in a unit of so many joules; None when it is not known."""
    return None if figure.half_width is None else figure.half_width / unit


def _group_of(groups: list[Any], summary: dict[str, Any]) -> str:
    found = find(groups, summary["experiment_name"])
    return found.name if found else summary["experiment_name"]


def teacher_users(summary: dict[str, Any], shares: dict[StageKey, list[str]]) -> int | None:
    """How many of the compared experiments use this one's teacher output; None without one."""
    own = [stage_key(stage, r) for stage, r in summary["stages"].items() if r.get("role") == "teacher" and "lineage" not in r]
    return max((len(shares[key]) for key in own), default=None)


def stages(summaries: list[dict[str, Any]], shares: dict[StageKey, list[str]]) -> pd.DataFrame:
    """One row per experiment and stage: energy [J, kWh] with class, boundary and half-width, work and rates.

    `lineage` names the experiment whose starting policy a stage made; such a stage is in no total of this experiment. `users`
    counts the compared experiments that share the stage, `share_kwh` is its energy divided by them.
    """
    return pd.DataFrame([_stage(s, name, r, shares) for s in summaries for name, r in s["stages"].items()])


def _stage(s: dict[str, Any], name: str, r: dict[str, Any], shares: dict[StageKey, list[str]]) -> dict[str, Any]:
    joules, total, users = r.get("total_energy_joules"), r["energy"]["total"], shares[stage_key(name, r)]
    figure = figure_of(r)
    return {
        "experiment": s["experiment_name"],
        "stage": name,
        "role": r.get("role"),
        "lineage": r.get("lineage"),
        "status": r.get("status"),
        "joules": joules,
        "kwh": joules / 3.6e6 if joules is not None else None,
        "uncertainty_j": figure.half_width if figure is not None else None,
        "energy_class": total.get("class"),
        "boundary": "+".join(total.get("boundary") or []),
        "reason": total.get("reason"),
        **{f"{part}_j": (r["energy"].get(part) or {}).get("joules") for part in ("gpu", "cpu", "dram")},
        "useful_j": r.get("useful_j"),
        "wasted_j": r.get("wasted_j"),
        "carbon_g": (r.get("carbon") or {}).get("grams"),
        "duration_s": r.get("duration_seconds"),
        "tokens": r.get("tokens_processed"),
        "tokens_unit": r.get("tokens_unit"),
        "joules_per_token": r.get("joules_per_token"),
        "tokens_per_second": r.get("tokens_per_second"),
        "attempts": len(r.get("attempts") or []),
        "users": len(users),
        "share_kwh": joules / len(users) / 3.6e6 if joules is not None else None,
        "fingerprint": (r.get("provenance") or {}).get("fingerprint"),
    }


def rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain JSON values: what is not known or not finite is None."""
    return [{str(key): _plain(value) for key, value in row.items()} for row in table.to_dict("records")]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return value
    if pd.isna(value) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value.item() if hasattr(value, "item") else value


def write(table: pd.DataFrame, path: Path) -> None:
    """Write csv and parquet beside each other; columns that are wholly unknown keep their place."""
    lists = [column for column in table if any(isinstance(value, list) for value in table[column])]
    flat = table.copy()
    for column in lists:
        flat[column] = table[column].map("; ".join)
    flat.to_csv(path.with_suffix(".csv"), index=False)
    flat.to_parquet(path.with_suffix(".parquet"), index=False)
