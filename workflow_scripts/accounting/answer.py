"""answer.html: the comparison on one page for the report, warnings first. Self-contained, opens offline."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from workflow_scripts.accounting.figures import unit_of

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 1.2em; color: #222; }
table { border-collapse: collapse; margin: 0.4em 0 1.4em; }
th, td { padding: 0.25em 0.8em; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; white-space: nowrap; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
.warnings { border-left: 4px solid #d55e00; background: #fff4ec; padding: 0.6em 1em; max-width: 70em; }
.none { border-color: #009e73; background: #effaf5; }
"""
_NOTE = "Empty: not known, or does not apply. ±: half-width by the meters' uncertainties, or standard deviation over runs."


def page(comparison: dict[str, Any], path: Path) -> None:
    """Write the page: what to beware of, the experiments, when teachers pay, when students are repaid."""
    parts = [
        _warnings(comparison["warnings"]),
        "<h2>Experiments</h2>",
        _experiments(comparison),
        f"<p>{_NOTE} The stages of all experiments together, shared ones once: {_campaign(comparison['campaign'])}.</p>",
        f"<h2>Reuses of the teacher's output until it pays{_against(comparison)}</h2>",
        _break_even(comparison["break_even"]),
        "<h2>Generated tokens until making the student is repaid, against serving its teacher</h2>",
        _repayment(comparison["repayment"]),
    ]
    body = "\n".join(parts)
    text = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Comparison</title><style>{_STYLE}</style></head>'
    )
    path.write_text(f"{text}\n<body>\n{body}\n</body></html>\n", encoding="utf-8")


def _warnings(warnings: list[str]) -> str:
    if not warnings:
        return '<div class="warnings none">The experiments agree on everything that is checked.</div>'
    items = "".join(f"<li>{escape(text)}</li>" for text in warnings)
    return f'<div class="warnings"><b>Beware ({len(warnings)})</b><ul>{items}</ul></div>'


def _experiments(comparison: dict[str, Any]) -> str:
    quality = comparison["quality"]
    own = {row["experiment"]: row for row in comparison["experiments"]}
    factor, unit = unit_of(max((row["total_with_lineage_kwh"] or 0.0 for row in own.values()), default=0.0) or 1.0)
    head = ["experiment", "runs", *(f"{name} [{unit}]" for name in ("teacher", "student", "total", "total with policy"))]
    head += ["J/loss token", quality, "Pareto front (chance)", "class", "boundary"]
    rows = []
    for row in comparison["groups"]:
        first = own[row["members"][0]]
        energies = [_number(row[f"{key}_mean"], row[f"{key}_sd"], factor) for key in ("teacher_kwh", "student_kwh")]
        error = row["total_kwh_sd"] if row["total_kwh_sd"] is not None else first["total_uncertainty_kwh"]
        energies += [_number(row["total_kwh_mean"], error, factor), _number(row["total_with_lineage_kwh_mean"], None, factor)]
        chance = row["pareto_probability"]
        front = "" if chance is None else f"{'yes' if row['pareto'] else 'no'} ({chance:.0%})"
        rows.append(
            [
                row["group"],
                str(row["runs"]),
                *energies,
                _number(row["joules_per_token_mean"], row["joules_per_token_sd"]),
                _number(row[f"{quality}_mean"], row[f"{quality}_sd"]),
                front,
                first["energy_class"] or "",
                first["boundary"],
            ]
        )
    return _table(head, rows)


def _break_even(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "<p>No baseline is named, or it is not among the experiments.</p>"
    head = ["experiment", "verdict", "95 % interval", "chance of never", "saved per training", "the interval holds"]
    return _table(
        head,
        [
            [
                row["experiment"],
                row["verdict"],
                _range(row),
                _percent(row["never_probability"], 100),
                _percent(row["saving_pct"], 1),
                (row["interval"] or "").removeprefix("95 %, "),
            ]
            for row in rows
        ],
        text=(1, 5),
    )


def _repayment(rows: list[dict[str, Any]]) -> str:
    head = ["experiment", "verdict", "95 % interval", "chance of never", "teacher [J/token]", "student [J/token]"]
    return _table(
        head,
        [
            [
                row["experiment"],
                row["verdict"],
                _range(row),
                _percent(row["never_probability"], 100),
                _number(row["reference_j_per_token"]),
                _number(row["student_j_per_token"]),
            ]
            for row in rows
        ],
        text=(1,),
    )


def _table(head: list[str], rows: list[list[str]], text: tuple[int, ...] = ()) -> str:
    def line(cells: list[str], tag: str) -> str:
        marked = (f"<{tag}{' class=text' if i in text else ''}>{escape(cell)}</{tag}>" for i, cell in enumerate(cells))
        return f"<tr>{''.join(marked)}</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _number(value: float | None, error: float | None = None, factor: float = 1.0) -> str:
    if value is None:
        return ""
    return f"{value * factor:.4g}" + (f" ± {error * factor:.2g}" if error else "")


def _range(row: dict[str, Any]) -> str:
    if row["low"] is None:
        return ""
    return f"{row['low']:.4g} to {'never' if row['high'] is None else format(row['high'], '.4g')}"


def _percent(value: float | None, factor: float) -> str:
    return "" if value is None else f"{value * factor:.3g} %"


def _against(comparison: dict[str, Any]) -> str:
    return f", against {escape(comparison['baseline'])}" if comparison["baseline"] else ""


def _campaign(whole: dict[str, Any]) -> str:
    factor, unit = unit_of(whole["kwh"])
    return f"{_number(whole['kwh'], whole['uncertainty_kwh'], factor)} {unit}"
