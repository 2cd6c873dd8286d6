"""Print the comparison as a short table.

python -m workflow_scripts.report.table results/comparison/comparison.json [report.html]
"""

from __future__ import annotations

import sys
from pathlib import Path

from tabulate import tabulate

from workflow_scripts.accounting.rows import Comparison, names
from workflow_scripts.artefact import ArtefactError
from workflow_scripts.report.pages import render

COLUMNS = (
    ("experiment", "experiment", "{}"),
    ("teacher_kwh", "teacher kWh", "{:.6f}"),
    ("student_kwh", "student kWh", "{:.6f}"),
    ("lineage_kwh", "policy kWh", "{:.6f}"),
    ("method_kwh", "method kWh", "{:.6f}"),
    ("method_uncertainty_kwh", "+/- kWh", "{:.6f}"),
    ("beside_kwh", "beside it", "{:.6f}"),
    ("training_s", "train s", "{:.0f}"),
    ("training_cpu_s", "CPU s", "{:.0f}"),
    ("training_idle_pct", "idle %", "{:.0f}"),
    ("joules_per_token", "J/token", "{:.3f}"),
    ("work_joules_per_token", "of work", "{:.3f}"),
    ("cross_entropy", "CE", "{:.3f}"),
    ("untrained_cross_entropy", "CE before", "{:.3f}"),
    ("kl_to_teacher", "KL", "{:.3f}"),
    ("preference_margin", "margin", "{:+.3f}"),
)


def main() -> int:
    """Print the table, the sentences of the answer and where it is. `-` stands for what does not apply or is not known."""
    path = Path(sys.argv[1])
    try:
        comparison = Comparison.read(path)
    except ArtefactError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    cells = [
        ["-" if (value := row.column(key)) is None else form.format(value) for key, _, form in COLUMNS]
        for row in comparison.experiments
    ]
    align = ("left", *("right",) * (len(COLUMNS) - 1))
    table = tabulate(cells, [title for _, title, _ in COLUMNS], "simple", colalign=align, disable_numparse=True)
    reasons = names(comparison.experiments, "no_grams")
    grams = f" No grams of CO2e: {'; '.join(reasons)}." if reasons else ""
    print(render(comparison, "table.txt", table=table, grams=grams, folder=path.parent), end="")
    if len(sys.argv) > 2:
        print(f"Report: {sys.argv[2]} (opens in a browser, offline)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
