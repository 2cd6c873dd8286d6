"""Print the comparison as a short table.

python -m workflow_scripts.report.table results/comparison/comparison.json [report.html]
"""

from __future__ import annotations

import sys
from pathlib import Path

from tabulate import tabulate

from workflow_scripts.accounting.rows import BreakEven, Comparison
from workflow_scripts.artefact import ArtefactError
from workflow_scripts.report.pages import basis

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
        comparison = Comparison.read(path)
    except ArtefactError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(render(comparison)))
    print(f"\nThe answer is in {path.parent}/ (tables, figures) and, per experiment, in experiment_summary.json.")
    if len(sys.argv) > 2:
        print(f"Report: {sys.argv[2]} (opens in a browser, offline)")
    return 0


def render(comparison: Comparison) -> list[str]:
    """Lines of the table. `-` stands for what does not apply or is not known."""
    cells = [
        ["-" if (value := row.column(key)) is None else form.format(value) for key, _, form in COLUMNS]
        for row in comparison.experiments
    ]
    align = ("left", *("right",) * (len(COLUMNS) - 1))
    table = tabulate(cells, [title for _, title, _ in COLUMNS], "simple", colalign=align, disable_numparse=True)
    return [
        table,
        f"{basis(comparison)} J/token: training energy per loss token. CE, KL: nats per token on held-out text.",
        f"Stages of the compared experiments, shared ones once: {comparison.campaign_kwh:.6f} kWh",
        *(
            f"Teacher output of {row.experiment} pays against {comparison.baseline}: {row.verdict}{_sure(row)}"
            for row in comparison.break_even
        ),
        *(
            f"{row.experiment} repays its training against serving {row.reference}: {row.verdict}"
            for row in comparison.repayment
            if row.tokens is not None
        ),
        *(
            f"{row.experiment} starts from a policy whose training cost {row.lineage_kwh:.6f} kWh, which its total leaves out"
            for row in comparison.experiments
            if row.lineage_kwh is not None
        ),
        *(f"warning: {text}" for text in comparison.warnings),
    ]


def _sure(row: BreakEven) -> str:
    """How sure a break-even is, in brackets."""
    if row.low is None:
        return f" (interval: {row.interval})" if row.reuses is not None else ""
    high = f"{row.high:.1f}" if row.high is not None else "never"
    return f" ({row.low:.1f} to {high}: {row.interval})"


if __name__ == "__main__":
    sys.exit(main())
