r"""The comparison for papers and pages: the answer's tables as Markdown, and as LaTeX with booktabs.

`comparison.tex` is read with \input; its document needs booktabs. Captions carry class and boundary, cells the uncertainty.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from workflow_scripts.report.answer_tables import NOTE, Table, answer_tables, basis, campaign_text

_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after \\ and \item it would begin an argument
    "]": "{]}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "…": r"\ldots{}",
}
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|])")


def write(comparison: dict[str, Any], folder: Path) -> None:
    """Write comparison.md and comparison.tex."""
    (folder / "comparison.md").write_text(markdown(comparison), encoding="utf-8")
    (folder / "comparison.tex").write_text(latex(comparison), encoding="utf-8")


def markdown(comparison: dict[str, Any]) -> str:
    """GitHub's tables, what to beware of before them."""
    blocks = ["# Comparison"]
    if comparison["warnings"]:
        blocks.append("\n".join(["**Beware**", "", *(f"- {_plain(text)}" for text in comparison["warnings"])]))
    for table in answer_tables(comparison):
        blocks += [f"## {_plain(table.title)}", _markdown_table(table)]
    blocks.append(_plain(_note(comparison)))
    return "\n\n".join(blocks) + "\n"


def _markdown_table(table: Table) -> str:
    if not table.rows:
        return table.empty
    rule = [":---" if i in table.words else "---:" for i in range(len(table.head))]
    lines = [[_plain(cell) for cell in table.head], rule, *([_plain(cell) for cell in row] for row in table.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text without meaning to Markdown, on one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def latex(comparison: dict[str, Any]) -> str:
    """A table environment each, and what to beware of as a list."""
    blocks = [r"% \usepackage{booktabs} in the preamble; labels tab:experiments, tab:break-even, tab:repayment"]
    blocks += [_latex_table(table, comparison) for table in answer_tables(comparison) if table.rows]
    if comparison["warnings"]:
        items = [rf"  \item {escape(text)}" for text in comparison["warnings"]]
        blocks.append("\n".join([r"\paragraph{Beware}", r"\begin{itemize}", *items, r"\end{itemize}"]))
    return "\n\n".join(blocks) + "\n"


def _latex_table(table: Table, comparison: dict[str, Any]) -> str:
    columns = "".join("l" if i in table.words else "r" for i in range(len(table.head)))
    rows = [" & ".join(escape(cell) for cell in row) + r" \\" for row in table.rows]
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"  \caption{{{escape(f'{table.title}. {_note(comparison)}')}}}",
            rf"  \label{{tab:{table.name}}}",
            rf"  \begin{{tabular}}{{{columns}}}",
            r"    \toprule",
            f"    {' & '.join(escape(cell) for cell in table.head)} \\\\",
            r"    \midrule",
            *(f"    {row}" for row in rows),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )


def escape(text: str) -> str:
    """Text that LaTeX prints as it stands, on one line."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def _note(comparison: dict[str, Any]) -> str:
    whole = campaign_text(comparison["campaign"])
    return f"{basis(comparison)} {NOTE} The stages of all experiments together, shared ones once: {whole}."
