"""Print the comparison as a short table.

python -m workflow_scripts.report.table results/comparison/comparison.json [report.html]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from workflow_scripts.artefact import ArtefactError, read_json

COLUMNS = (
    ("experiment", "experiment", "{}"),
    ("teacher_kwh", "teacher kWh", "{:.6f}"),
    ("student_kwh", "student kWh", "{:.6f}"),
    ("evaluation_kwh", "eval kWh", "{:.6f}"),
    ("total_kwh", "total kWh", "{:.6f}"),
    ("total_uncertainty_kwh", "+/- kWh", "{:.6f}"),
    ("joules_per_token", "J/token", "{:.3f}"),
    ("cross_entropy", "CE", "{:.3f}"),
    ("untrained_cross_entropy", "CE before", "{:.3f}"),
    ("kl_to_teacher", "KL", "{:.3f}"),
    ("preference_margin", "margin", "{:+.3f}"),
)


def main() -> int:
    """Print the table, the break-even lines and where the answer is."""
    path = Path(sys.argv[1])
    try:
        comparison = read_json(path)
    except ArtefactError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(render(comparison)))
    print(f"\nThe answer is in {path.parent}/ (tables, figures) and, per experiment, in experiment_summary.json.")
    if len(sys.argv) > 2:
        print(f"Report: {sys.argv[2]} (opens in a browser, offline)")
    return 0


def render(comparison: dict[str, Any]) -> list[str]:
    """Lines of the table. `-` stands for what does not apply or is not known."""
    rows = [[title for _, title, _ in COLUMNS]]
    for entry in comparison["experiments"]:
        rows.append(["-" if entry[key] is None else form.format(entry[key]) for key, _, form in COLUMNS])
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = [
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    classes = sorted({entry["energy_class"] for entry in comparison["experiments"]})
    boundaries = sorted({entry["boundary"] for entry in comparison["experiments"]})
    lines.append(
        f"Energy: {'/'.join(classes)}, boundary {' | '.join(boundaries)}. J/token: training energy per loss token. CE, KL: "
        "nats per token on held-out text."
    )
    lines.append(f"Stages of the compared experiments, shared ones once: {comparison['campaign_kwh']:.6f} kWh")
    for row in comparison["break_even"]:
        lines.append(
            f"Teacher output of {row['experiment']} pays against {comparison['baseline']}: {row['verdict']}{_sure(row)}"
        )
    for row in comparison.get("repayment", []):
        if row["tokens"] is not None:
            lines.append(f"{row['experiment']} repays its training against serving {row['reference']}: {row['verdict']}")
    for entry in comparison["experiments"]:
        if entry["lineage_kwh"] is not None:
            lines.append(
                f"{entry['experiment']} starts from a policy whose training cost {entry['lineage_kwh']:.6f} kWh, "
                "which its total leaves out"
            )
    lines += [f"warning: {text}" for text in comparison["warnings"]]
    return lines


def _sure(row: dict[str, Any]) -> str:
    """How sure a break-even is, in brackets."""
    if row.get("low") is None:
        return f" (interval: {row['interval']})" if row["reuses"] is not None else ""
    high = f"{row['high']:.1f}" if row["high"] is not None else "never"
    return f" ({row['low']:.1f} to {high}: {row['interval']})"


if __name__ == "__main__":
    sys.exit(main())
