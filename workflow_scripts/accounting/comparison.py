"""comparison: experiments side by side, break-even, Pareto front, figures.

    python -m workflow_scripts.accounting.comparison --summary FILE … --quality FIELD
        [--baseline NAME] --out DIR/comparison.json

Writes comparison.json, comparison.csv, break_even.csv, energy_by_stage.svg and energy_quality.svg.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from workflow_scripts.accounting import figures
from workflow_scripts.accounting.formulas import break_even_reuse, pareto_front
from workflow_scripts.artefact import ArtefactError, read_json, write_json

LOWER_IS_BETTER = {"cross_entropy": True, "kl_to_teacher": True, "top1_agreement": False}
SHARED_ROLES = ("prerun", "data", "teacher")


def main() -> int:
    """Read the summaries, write tables and figures."""
    parser = argparse.ArgumentParser(prog="workflow_scripts.accounting.comparison", allow_abbrev=False)
    parser.add_argument("--summary", nargs="+", required=True)
    parser.add_argument("--quality", required=True, choices=sorted(LOWER_IS_BETTER))
    parser.add_argument("--baseline")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    try:
        summaries = [read_json(Path(path)) for path in arguments.summary]
    except ArtefactError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    out = Path(arguments.out)
    table = tabulate(summaries)
    comparison = compare(summaries, table, arguments.quality, arguments.baseline)
    out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(out.with_suffix(".csv"), index=False)
    pd.DataFrame(comparison["break_even"]).to_csv(out.with_name("break_even.csv"), index=False)
    figures.energy_by_stage(summaries, out.with_name("energy_by_stage.svg"))
    figures.energy_quality(table, arguments.quality, set(comparison["pareto"]), out.with_name("energy_quality.svg"))
    write_json(out, comparison)
    return 0


def tabulate(summaries: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per experiment; energies in kWh by role, J per loss token of the training, quality on held-out text."""
    rows = []
    for s in summaries:
        training = s["stages"]["dpo_training" if s["pipeline"] == "dpo" else "student_train"]
        quality, preference = s["quality"], s["quality"]["preference"]
        rows.append(
            {
                "experiment": s["experiment_name"],
                "pipeline": s["pipeline"],
                **{f"{role}_kwh": entry["kwh"] for role, entry in s["roles"].items()},
                "total_kwh": s["total_energy_kwh"],
                "total_uncertainty_kwh": None if s["energy"]["uncertainty_j"] is None else s["energy"]["uncertainty_j"] / 3.6e6,
                "lineage_kwh": s["lineage"]["total_energy_kwh"] if s["lineage"] else None,
                "total_with_lineage_kwh": with_lineage(s, s["total_energy_kwh"]),
                "wasted_kwh": s["wasted_j"] / 3.6e6 if s["wasted_j"] is not None else None,
                "carbon_g": s["carbon_grams"],
                "training_tokens": training["tokens_processed"],
                "joules_per_token": training["joules_per_token"],
                "tokens_per_second": training["tokens_per_second"],
                "cross_entropy": quality["cross_entropy"],
                "untrained_cross_entropy": s["references"]["student"]["cross_entropy"],
                "teacher_cross_entropy": s["references"]["teacher"]["cross_entropy"],
                "kl_to_teacher": quality["kl_to_teacher"],
                "top1_agreement": quality["top1_agreement"],
                "preference_margin": preference["mean_margin"] if preference else None,
                "preference_accuracy": preference["accuracy"] if preference else None,
                "energy_class": s["energy"]["class"],
                "boundary": "; ".join(s["energy"]["boundary"]),
            }
        )
    return pd.DataFrame(rows)


def with_lineage(summary: dict[str, Any], kwh: float | None) -> float | None:
    """Energy [kWh] with what training the starting policy has cost; None when either is not known."""
    if summary["lineage"] is None:
        return kwh
    before = summary["lineage"]["total_energy_kwh"]
    return kwh + before if kwh is not None and before is not None else None


def compare(summaries: list[dict[str, Any]], table: pd.DataFrame, quality: str, baseline: str | None) -> dict[str, Any]:
    """Break-even against `baseline`, Pareto front, campaign total (shared stages once), and what is not comparable."""
    sign = -1.0 if LOWER_IS_BETTER[quality] else 1.0
    points = {r["experiment"]: (r["total_with_lineage_kwh"], sign * r[quality]) for r in table.to_dict("records")}
    points = {name: point for name, point in points.items() if pd.notna(point[0])}
    unique = {
        (stage["provenance"]["fingerprint"], stage["start_time"]): stage["total_energy_joules"]
        for s in summaries
        for stage in s["stages"].values()
    }
    return {
        "schema": "comparison/1",
        "quality": quality,
        "baseline": baseline,
        "experiments": table.astype(object).where(table.notna(), None).to_dict("records"),
        "break_even": break_even(summaries, baseline) if baseline else [],
        "pareto": sorted(pareto_front(points)),
        "campaign_kwh": sum(j for j in unique.values() if j is not None) / 3.6e6,
        "warnings": differences(summaries),
    }


def break_even(summaries: list[dict[str, Any]], baseline: str) -> list[dict[str, Any]]:
    """N* of each distilled experiment: reuses of its teacher output until it beats the baseline's training energy.

    Counts student-training energies only, those that led to a starting policy included; `never` when they alone cost at least
    as much as the baseline's.
    """
    by_name = {s["experiment_name"]: s for s in summaries}
    if baseline not in by_name:
        return []
    gold = by_name[baseline]["roles"]["student"]["joules"]
    rows = []
    for name, s in by_name.items():
        teacher, own = s["roles"]["teacher"]["joules"], s["roles"]["student"]["kwh"]
        kwh = with_lineage(s, own)
        student = kwh * 3.6e6 if kwh is not None else None
        if name == baseline or s["roles"]["teacher"]["stages"] == 0:
            continue
        if teacher is None or student is None or gold is None:
            rows.append({"experiment": name, "reuses": None, "verdict": "unknown: an energy is missing"})
            continue
        reuses = break_even_reuse(teacher, student, gold)
        verdict = "never: its training alone costs no less" if reuses is None else f"after {reuses:.1f} reuses"
        rows.append({"experiment": name, "reuses": reuses, "verdict": verdict})
    return rows


def differences(summaries: list[dict[str, Any]]) -> list[str]:
    """What must agree for a fair comparison and does not, one line per property."""
    properties = {
        s["experiment_name"]: {
            "hardware": hardware(s),
            "boundary": "; ".join(s["energy"]["boundary"]),
            "energy class": s["energy"]["class"],
            "evaluation split": s["quality"]["split_sha256"][:12],
            **s["comparable"],
        }
        for s in summaries
    }
    incomplete = [s["experiment_name"] for s in summaries if not s["energy"]["complete"]]
    lines = [f"{name}: a stage has no energy figure, so it has no total" for name in incomplete]
    for what in next(iter(properties.values())):
        values = {name: own[what] for name, own in properties.items()}
        if len(set(values.values())) > 1:
            lines.append(f"{what} differs: " + "; ".join(f"{name}: {value}" for name, value in values.items()))
    return lines


def hardware(summary: dict[str, Any]) -> str:
    """CPUs and GPUs that the experiment's stages ran on."""
    records = summary["stages"].values()
    names = {r["provenance"]["cpu"] or "unknown CPU" for r in records}
    return ", ".join(sorted(names | {d.get("name") or "unknown GPU" for r in records for d in r["devices"]}))


if __name__ == "__main__":
    sys.exit(main())
