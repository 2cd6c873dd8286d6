"""The tables of the answer, cell by cell, as the page, the Markdown and the LaTeX show them.

An empty cell is not known or does not apply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from workflow_scripts.accounting.rows import Campaign, Comparison, ExperimentRow, GroupRow, Verdict
from workflow_scripts.report.figures import unit_of
from workflow_scripts.report.rounding import number

VERDICT = ("experiment", "verdict", "95 % interval", "chance of never")


@dataclass(frozen=True)
class Table:
    """Title, head and rows of text; `words` are the columns of words, `empty` says why there is no row."""

    name: str
    title: str
    head: list[str]
    rows: list[list[str]]
    words: tuple[int, ...] = (0,)
    empty: str = ""
    escape: Callable[[str], str] = str

    @property
    def markdown(self) -> str:
        """The table as GitHub reads it."""
        align = ["left" if i in self.words else "right" for i in range(len(self.head))]
        head, *rows = ([self.escape(cell) for cell in row] for row in (self.head, *self.rows))
        return tabulate(rows, head, "pipe", colalign=align, disable_numparse=True)


def answer_tables(comparison: Comparison, escape: Callable[[str], str] = str) -> list[Table]:
    """Experiments, break-even of the teachers, repayment of the students; `escape` is for Markdown."""
    against = f", against {comparison.baseline}" if comparison.baseline else ""
    pays = [[*_verdict(row), _percent(row.saving_pct, 1), row.holds or ""] for row in comparison.break_even]
    repaid = [
        [*_verdict(row), number(row.reference_j_per_token), number(row.student_j_per_token), row.holds or ""]
        for row in comparison.repayment
    ]
    no_baseline = "No baseline is named, or it is not among the experiments."
    serving = "Generated tokens until making the student is repaid, against serving its teacher"
    return [
        _experiments(comparison, escape),
        Table(
            "break-even",
            f"Reuses of the teacher's output until it pays{against}",
            [*VERDICT, "saved per training", "the interval holds"],
            pays,
            (0, 1, 5),
            no_baseline,
            escape,
        ),
        Table(
            "repayment",
            serving,
            [*VERDICT, "teacher [J/token]", "student [J/token]", "the interval holds"],
            repaid,
            (0, 1, 6),
            escape=escape,
        ),
    ]


def campaign_text(whole: Campaign) -> str:
    """What all compared experiments cost together."""
    factor, unit = unit_of(whole.kwh)
    return f"{number(whole.kwh, whole.uncertainty_kwh, factor)} {unit}"


def _experiments(comparison: Comparison, escape: Callable[[str], str]) -> Table:
    quality = comparison.quality
    own = {row.experiment: row for row in comparison.experiments}
    factor, unit = unit_of(max((row.total_with_lineage_kwh or 0.0 for row in own.values()), default=0.0) or 1.0)
    energies = ("teacher", "student", "total", "total_with_lineage")
    head = ["experiment", "runs", *(f"{name} [{unit}]" for name in ("teacher", "student", "total", "total with policy"))]
    head += ["J/loss token", quality, "Pareto front (chance)", "class", "boundary"]
    rows = []
    for row in comparison.groups:
        members = [own[name] for name in row.members]
        rows.append(
            [
                row.group,
                str(row.runs),
                *(_mean(row, members, f"{name}_kwh", f"{name}_uncertainty_kwh", factor) for name in energies),
                _mean(row, members, "joules_per_token", "joules_per_token_uncertainty"),
                number(row.column(f"{quality}_mean"), row.column(f"{quality}_sd")),
                "" if comparison.pareto_refused is not None else _front(row),
                *(
                    "; ".join(dict.fromkeys(m.column(key) for m in members if m.column(key)))
                    for key in ("energy_class", "boundary")
                ),
            ]
        )
    return Table("experiments", "Experiments", head, rows, escape=escape)


def _front(row: GroupRow) -> str:
    """Whether a group is on the Pareto front, with the chance of it where that is known."""
    chance = row.pareto_probability
    return ("yes" if row.pareto else "no") + ("" if chance is None else f" ({chance:.0%})")


def _mean(row: GroupRow, members: Sequence[ExperimentRow], key: str, error: str, factor: float = 1.0) -> str:
    """Mean over runs with their spread; of one run, the value with the half-width by its meters."""
    spread = row.column(f"{key}_sd")
    return number(row.column(f"{key}_mean"), spread if spread is not None else members[0].column(error), factor)


def _verdict(row: Verdict) -> list[str]:
    """Cells of VERDICT."""
    interval = "" if row.low is None else f"{row.low:.4g} to {'never' if row.high is None else format(row.high, '.4g')}"
    return [row.experiment, row.verdict, interval, _percent(row.never_probability, 100)]


def _percent(value: float | None, factor: float) -> str:
    return "" if value is None else f"{value * factor:.3g} %"
