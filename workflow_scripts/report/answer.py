"""answer.html: the comparison on one page for the report, warnings first. Self-contained, opens offline."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from workflow_scripts.report.answer_tables import NOTE, Table, answer_tables, campaign_text

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 1.2em; color: #222; }
table { border-collapse: collapse; margin: 0.4em 0 1.4em; }
th, td { padding: 0.25em 0.8em; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; white-space: nowrap; }
td.text, th { white-space: normal; max-width: 26em; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
.warnings { border-left: 4px solid #d55e00; background: #fff4ec; padding: 0.6em 1em; max-width: 70em; }
.none { border-color: #009e73; background: #effaf5; }
"""


def page(comparison: dict[str, Any], path: Path) -> None:
    """Write the page: what to beware of, the experiments, when teachers pay, when students are repaid."""
    experiments, *others = answer_tables(comparison)
    parts = [
        _warnings(comparison["warnings"]),
        *_section(experiments),
        f"<p>{NOTE} The stages of all experiments together, shared ones once: {campaign_text(comparison['campaign'])}.</p>",
        *(part for table in others for part in _section(table)),
    ]
    body = "\n".join(parts)
    text = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Comparison</title><style>{_STYLE}</style></head>'
    )
    path.write_text(f"{text}\n<body>\n{body}\n</body></html>\n", encoding="utf-8")


def _section(table: Table) -> list[str]:
    return [f"<h2>{escape(table.title)}</h2>", _table(table) if table.rows or not table.empty else f"<p>{table.empty}</p>"]


def _warnings(warnings: list[str]) -> str:
    if not warnings:
        return '<div class="warnings none">The experiments agree on everything that is checked.</div>'
    items = "".join(f"<li>{escape(text)}</li>" for text in warnings)
    return f'<div class="warnings"><b>Beware ({len(warnings)})</b><ul>{items}</ul></div>'


def _table(table: Table) -> str:
    words = table.words[1:]  # the first column has its own style

    def line(cells: list[str], tag: str) -> str:
        marked = (f"<{tag}{' class=text' if i in words else ''}>{escape(cell)}</{tag}>" for i, cell in enumerate(cells))
        return f"<tr>{''.join(marked)}</tr>"

    return f"<table>{line(table.head, 'th')}{''.join(line(row, 'td') for row in table.rows)}</table>"
