"""comparison: experiments side by side, break-even, Pareto front, figures.

    python -m workflow_scripts.stages.comparison --summary FILE … --quality FIELD
        [--baseline NAME] --out DIR/comparison.json

Writes comparison.json; answer.html, the same on one page, and its tables as comparison.md and comparison.tex; the figures as
svg; and as csv and parquet the tables comparison (a row per experiment), stage_energy (experiment and stage), amortised
(experiment and N), runs (means over seeds), break_even and repayment. A summary that cannot be read is named and left out; the
exit code is 1 when none is left.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workflow_scripts.accounting.costs import campaign, total_cost, users, with_lineage
from workflow_scripts.accounting.errors import DRAWS, Figure, only_one_instrument, sample
from workflow_scripts.accounting.fairness import boundary_refusal, differences, quality_refusal
from workflow_scripts.accounting.formulas import pareto_front
from workflow_scripts.accounting.load import Loaded, load
from workflow_scripts.accounting.qualities import known, lower_is_better
from workflow_scripts.accounting.reuse import AMORTISED, BREAK_EVEN, amortised_rows, break_even, repayment
from workflow_scripts.accounting.runs import Group, averages, find, group
from workflow_scripts.artefact import write_json
from workflow_scripts.report import answer, figures, figures_course, tables, typeset

__all__ = ["break_even", "compare", "differences", "main", "with_lineage"]
SHOWN_WARNINGS = 20


def main(arguments: list[str] | None = None) -> int:
    """Read the summaries, write tables and figures."""
    parser = argparse.ArgumentParser(prog="workflow_scripts.stages.comparison", allow_abbrev=False)
    parser.add_argument("--summary", nargs="+", required=True)
    parser.add_argument("--quality", default="cross_entropy")
    parser.add_argument("--baseline")
    parser.add_argument("--out", default="comparison/comparison.json")
    options = parser.parse_args(arguments)
    loaded = load([Path(path) for path in options.summary])
    if not loaded.summaries:
        for text in loaded.warnings:
            print(f"warning: {text}", file=sys.stderr)
        print(f"error: none of the {len(options.summary)} summaries can be read", file=sys.stderr)
        return 1
    if options.quality not in (there := known(loaded.summaries)):
        print(
            f"error: comparison.quality = {options.quality!r}: no evaluation has it, there are {', '.join(there)}: choose one, "
            "or add its task to evaluation.lm_eval_tasks",
            file=sys.stderr,
        )
        return 1
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    comparison, written = compare(loaded, options.quality, options.baseline)
    for name, table in written.items():
        tables.write(table, out.with_name(name))
    comparison["warnings"] += draw(loaded.summaries, comparison, options.quality, out.parent)
    comparison["counts"]["warnings"] = len(comparison["warnings"])
    answer.page(comparison, out.with_name("answer.html"))
    typeset.write(comparison, out.parent)
    write_json(out, comparison)
    say(comparison)
    return 0


def say(comparison: dict[str, Any]) -> None:
    """Warnings and what was counted, on standard error."""
    for text in comparison["warnings"][:SHOWN_WARNINGS]:
        print(f"warning: {text}", file=sys.stderr)
    if len(comparison["warnings"]) > SHOWN_WARNINGS:
        print(f"warning: … {len(comparison['warnings']) - SHOWN_WARNINGS} more in comparison.json", file=sys.stderr)
    counts = ", ".join(f"{key} {value}" for key, value in comparison["counts"].items())
    print(f"comparison: {counts}", file=sys.stderr)


def compare(loaded: Loaded, quality: str, baseline: str | None) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """The content of comparison.json, and the tables by file name.

    Break-even against `baseline`, Pareto front, campaign total (shared stages once), and what is not comparable.
    """
    summaries = loaded.summaries
    groups, shares = group(summaries), users(summaries)
    table = tables.experiments(summaries, shares)
    by_group = averages(groups, table)
    sign = -1.0 if lower_is_better(summaries, quality) else 1.0
    front = pareto(groups, by_group, quality, sign, quality_refusal(summaries, quality))
    gold = find(groups, baseline) if baseline else None
    sharing = {g.name: max((tables.teacher_users(s, shares) or 1 for s in g.runs), default=1) for g in groups}
    amortised, left_out = amortised_rows(summaries, baseline, sharing)
    pays, repaid = break_even(summaries, baseline) if baseline else [], repayment(summaries)
    whole = campaign(summaries)
    for row in by_group:
        row |= {"pareto": row["group"] in front["front"], "pareto_probability": front["probability"].get(row["group"])}
    comparison = {
        "schema": "comparison/1",
        "quality": quality,
        "baseline": baseline,
        "experiments": tables.rows(table),
        "break_even": pays,
        "pareto": sorted(name for g in groups if g.name in front["front"] for name in g.members),
        "campaign_kwh": whole["kwh"],
        "warnings": [
            *loaded.warnings,
            *([f"baseline {baseline} is not among the summaries: no break-even"] if baseline and gold is None else []),
            *differences(summaries),
            *front["warnings"],
            *left_out,
            *_incomplete(whole),
        ],
        "pareto_refused": front["refused"],
        "groups": by_group,
        "repayment": repaid,
        "amortised": amortised,
        "campaign": whole,
        "skipped": loaded.skipped,
        "counts": {"read": len(summaries), "left_out": len(loaded.skipped), "groups": len(groups), "warnings": 0},
    }
    written = {
        "comparison": table,
        "stage_energy": tables.stages(summaries, shares),
        "amortised": pd.DataFrame(amortised, columns=AMORTISED),
        "runs": pd.DataFrame(by_group),
        "break_even": pd.DataFrame(pays, columns=BREAK_EVEN),
        "repayment": pd.DataFrame(repaid),
    }
    return comparison, written


def _incomplete(whole: dict[str, Any]) -> list[str]:
    missing = whole["without_figure"]
    return (
        [f"the campaign's total leaves out {len(missing)} stage(s) without a figure: {', '.join(missing)}"] if missing else []
    )


def pareto(
    groups: list[Group], by_group: list[dict[str, Any]], quality: str, sign: float, refused: str | None
) -> dict[str, Any]:
    """The front over energy (starting policies included) and quality (times `sign`: more is better), of means over runs.

    `probability` is the share of draws of the errors in which a group is on the front; empty where one instrument gave all
    energies, which keep their order whatever its error is. Refused, with the reason, where qualities are not of one scale, and
    where there are fewer than two points.
    """
    points: dict[str, tuple[Figure, Figure]] = {}
    warnings = []
    for each, row in zip(groups, by_group, strict=True):
        energy, value = total_cost(each), row[f"{quality}_mean"]
        if energy is None or value is None or each.problems:
            why = each.problems[0] if each.problems else "no energy total" if energy is None else _no_quality(quality)
            warnings.append(f"{each.name} is no point of the Pareto front: {why}")
            continue
        points[each.name] = (energy, Figure(sign * value, {}, row[f"{quality}_sd"], row[f"{quality}_n"]))
    if refused is None and len(points) < 2:
        refused = f"a front needs two points, there is {len(points)}" + "".join(f" ({name})" for name in points)
    result: dict[str, Any] = {"front": set(), "probability": {}, "refused": refused, "warnings": warnings}
    if refused is not None:
        return result | {"warnings": [*warnings, f"no Pareto front: {refused}"]}
    if text := boundary_refusal([g for g in groups if g.name in points], ("teacher", "student", "evaluation")):
        warnings.append(f"the Pareto front sets unlike energies against each other: {text.removeprefix('refused: ')}")
    front = pareto_front({name: (energy.value, value.value) for name, (energy, value) in points.items()})
    return result | {"front": front, "probability": _front_probability(points)}


def _no_quality(quality: str) -> str:
    task = quality.partition("/")[0]
    return f"no {quality}" + (f": add {task!r} to its evaluation.lm_eval_tasks" if "/" in quality else "")


def _front_probability(points: dict[str, tuple[Figure, Figure]]) -> dict[str, float]:
    names = list(points)
    known = [*(points[n][0] for n in names), *(points[n][1] for n in names)]
    drawn = sample(known)
    if drawn is None or only_one_instrument(known):
        return {}
    energy, value = drawn[: len(names)], drawn[len(names) :]
    found = {}
    for i, name in enumerate(names):
        dominated = np.zeros(DRAWS, dtype=bool)
        for j in range(len(names)):
            strictly = (energy[j] < energy[i]) | (value[j] > value[i])
            dominated |= (energy[j] <= energy[i]) & (value[j] >= value[i]) & strictly
        found[name] = float(1 - dominated.mean())
    return found


def draw(summaries: list[dict[str, Any]], comparison: dict[str, Any], quality: str, folder: Path) -> list[str]:
    """Draw all figures; returns what they could not show."""
    unlike = [text.partition(" differs:")[0] for text in comparison["warnings"] if " differs: " in text]
    figures.energy_by_stage(summaries, folder / "energy_by_stage.svg", unlike)
    figures.energy_quality(comparison, quality, folder / "energy_quality.svg", unlike)
    figures.cost_by_reuse(comparison, folder / "cost_by_reuse.svg", unlike)
    missing = figures_course.power(summaries, folder / "power.svg")
    return [*missing, *figures_course.loss(summaries, folder / "loss_by_joules.svg")]


if __name__ == "__main__":
    sys.exit(main())
