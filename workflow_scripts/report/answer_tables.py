"""The tables of the answer, cell by cell, as the page, the Markdown and the LaTeX show them.

An empty cell is not known or does not apply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workflow_scripts.report.figures import unit_of
from workflow_scripts.report.rounding import number

NOTE = "Empty: not known, or does not apply. ±: half-width by the meters' uncertainties, or standard deviation over runs."


@dataclass(frozen=True)
class Table:
    """Title, head and rows of text; `words` are the columns of words, `empty` says why there is no row."""

    name: str
    title: str
    head: list[str]
    rows: list[list[str]]
    words: tuple[int, ...] = (0,)
    empty: str = ""


def answer_tables(comparison: dict[str, Any]) -> list[Table]:
    """Experiments, break-even of the teachers, repayment of the students."""
    return [_experiments(comparison), _break_even(comparison), _repayment(comparison)]


def basis(comparison: dict[str, Any]) -> str:
    """Class and boundary of the energies, in a sentence."""
    rows = comparison["experiments"]
    classes, boundaries = (sorted({row[key] for row in rows if row[key]}) for key in ("energy_class", "boundary"))
    return f"Energy: {'/'.join(classes) or 'unavailable'}, boundary {' | '.join(boundaries) or 'none'}."


def campaign_text(whole: dict[str, Any]) -> str:
    """What all compared experiments cost together."""
    factor, unit = unit_of(whole["kwh"])
    return f"{number(whole['kwh'], whole['uncertainty_kwh'], factor)} {unit}"


def _experiments(comparison: dict[str, Any]) -> Table:
    quality = comparison["quality"]
    own = {row["experiment"]: row for row in comparison["experiments"]}
    factor, unit = unit_of(max((row["total_with_lineage_kwh"] or 0.0 for row in own.values()), default=0.0) or 1.0)
    energies = ("teacher", "student", "total", "total_with_lineage")
    head = ["experiment", "runs", *(f"{name} [{unit}]" for name in ("teacher", "student", "total", "total with policy"))]
    head += ["J/loss token", quality, "Pareto front (chance)", "class", "boundary"]
    rows = []
    for row in comparison["groups"]:
        members = [own[name] for name in row["members"]]
        chance = row["pareto_probability"]
        rows.append(
            [
                row["group"],
                str(row["runs"]),
                *(_mean(row, members, f"{name}_kwh", f"{name}_uncertainty_kwh", factor) for name in energies),
                _mean(row, members, "joules_per_token", "joules_per_token_uncertainty"),
                number(row[f"{quality}_mean"], row[f"{quality}_sd"]),
                _front(row["pareto"], chance, comparison["pareto_refused"]),
                _all_of(members, "energy_class"),
                _all_of(members, "boundary"),
            ]
        )
    return Table("experiments", "Experiments", head, rows)


def _front(inside: bool, chance: float | None, refused: str | None) -> str:
    """Whether a group is on the Pareto front, with the chance of it where that is known."""
    if refused is not None:
        return ""
    return ("yes" if inside else "no") + ("" if chance is None else f" ({chance:.0%})")


def _mean(row: dict[str, Any], members: Sequence[dict[str, Any]], key: str, error: str, factor: float = 1.0) -> str:
    """Mean over runs with their spread; of one run, the value with the half-width by its meters."""
    spread = row[f"{key}_sd"]
    return number(row[f"{key}_mean"], spread if spread is not None else members[0].get(error), factor)


def _all_of(members: Sequence[dict[str, Any]], key: str) -> str:
    return "; ".join(dict.fromkeys(row[key] for row in members if row[key]))


def _break_even(comparison: dict[str, Any]) -> Table:
    against = f", against {comparison['baseline']}" if comparison["baseline"] else ""
    head = ["experiment", "verdict", "95 % interval", "chance of never", "saved per training", "the interval holds"]
    rows = [
        [
            row["experiment"],
            row["verdict"],
            _range(row),
            _percent(row["never_probability"], 100),
            _percent(row["saving_pct"], 1),
            (row["interval"] or "").removeprefix("95 %, "),
        ]
        for row in comparison["break_even"]
    ]
    title = f"Reuses of the teacher's output until it pays{against}"
    return Table("break-even", title, head, rows, (0, 1, 5), "No baseline is named, or it is not among the experiments.")


def _repayment(comparison: dict[str, Any]) -> Table:
    head = ["experiment", "verdict", "95 % interval", "chance of never", "teacher [J/token]", "student [J/token]"]
    head += ["the interval holds"]
    rows = [
        [
            row["experiment"],
            row["verdict"],
            _range(row),
            _percent(row["never_probability"], 100),
            number(row["reference_j_per_token"]),
            number(row["student_j_per_token"]),
            (row["interval"] or "").removeprefix("95 %, "),
        ]
        for row in comparison["repayment"]
    ]
    title = "Generated tokens until making the student is repaid, against serving its teacher"
    return Table("repayment", title, head, rows, (0, 1, 6))


def _range(row: dict[str, Any]) -> str:
    if row["low"] is None:
        return ""
    return f"{row['low']:.4g} to {'never' if row['high'] is None else format(row['high'], '.4g')}"


def _percent(value: float | None, factor: float) -> str:
    return "" if value is None else f"{value * factor:.3g} %"
