r"""The comparison as a page (answer.html, opens offline), as Markdown, and as LaTeX for \input (with booktabs)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from tabulate import tabulate

from workflow_scripts.accounting.rows import Campaign, Comparison, ExperimentRow, GroupRow, Verdict, names
from workflow_scripts.report.rounding import number, unit_of

NOTE = "Empty: not known, or does not apply. ±: half-width by the meters' uncertainties, or standard deviation over runs."
PAGES = ("answer.html", "comparison.md", "comparison.tex")
_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$", "×": r"$\times$", "…": r"\ldots{}"},
    **{"[": "{[}", "]": "{]}"},  # after \\ and \item it would begin an argument
}


def latex(text: str) -> str:
    """Text that LaTeX prints as it stands, on one line."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def markdown(text: str) -> str:
    """Text without meaning to Markdown, on one line."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(text.split()))


def pipe(rows: Sequence[Sequence[str]], head: Sequence[str], words: Sequence[int] | None = None) -> str:
    """A table as GitHub reads it, without padding; columns other than `words` are set to the right."""
    align = [None if words is None else "left" if i in words else "right" for i in range(len(head))]
    lines = tabulate(rows, head, "pipe", colalign=align, disable_numparse=True).splitlines()
    return "\n".join(re.sub(r" *(?<!\\)\| *", " | ", line).strip() for line in lines)


def basis(comparison: Comparison) -> str:
    """Class and boundary of the energies, in a sentence."""
    classes, boundaries = (names(comparison.experiments, key) for key in ("energy_class", "boundary"))
    return f"Energy: {'/'.join(classes) or 'unavailable'}, boundary {' | '.join(boundaries) or 'none'}."


def template(name: str) -> Template:
    """A file of templates/."""
    environment = Environment(
        loader=PackageLoader("workflow_scripts.report"),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"latex": latex, "markdown": markdown, "pipe": _pipe}
    return environment.get_template(name)


def render(comparison: Comparison, name: str) -> str:
    """One of PAGES: what to beware of, the experiments, when teachers pay, when students are repaid."""
    campaign = campaign_text(comparison.campaign)
    return template(f"{name}.j2").render(
        tables=answer_tables(comparison),
        warnings=comparison.warnings,
        note=NOTE,
        campaign=campaign,
        caption=f"{basis(comparison)} {NOTE} The stages of all experiments together, shared ones once: {campaign}.",
    )


def write(comparison: Comparison, folder: Path) -> None:
    """Write all pages."""
    for name in PAGES:
        (folder / name).write_text(render(comparison, name), encoding="utf-8")


@dataclass(frozen=True)
class Table:
    """Title and rows of text by column; `words` are the columns of words, `empty` says why there is no row."""

    name: str
    title: str
    head: list[str]
    rows: list[list[str]]
    words: tuple[int, ...] = (0,)
    empty: str = ""


def _pipe(table: Table) -> str:
    return pipe([[markdown(cell) for cell in row] for row in table.rows], [markdown(cell) for cell in table.head], table.words)


def answer_tables(comparison: Comparison) -> list[Table]:
    """Experiments, break-even of the teachers, repayment of the students."""
    head = ["experiment", "verdict", "95 % interval", "chance of never"]
    against = f", against {comparison.baseline}" if comparison.baseline else ""
    pays = Table(
        name="break-even",
        title=f"Reuses of the teacher's output until it pays{against}",
        head=[*head, "saved per training", "the interval holds"],
        rows=[[*_verdict(row), _percent(row.saving_pct), row.holds or ""] for row in comparison.break_even],
        words=(0, 1, 5),
        empty="No baseline is named, or it is not among the experiments.",
    )
    served = [(row, number(row.reference_j_per_token), number(row.student_j_per_token)) for row in comparison.repayment]
    repaid = Table(
        name="repayment",
        title="Generated tokens until making the student is repaid, against serving its teacher",
        head=[*head, "teacher [J/token]", "student [J/token]", "the interval holds"],
        rows=[[*_verdict(row), teacher, student, row.holds or ""] for row, teacher, student in served],
        words=(0, 1, 6),
    )
    return [_experiments(comparison), pays, repaid]


def campaign_text(whole: Campaign) -> str:
    """What all compared experiments cost together."""
    factor, unit = unit_of(whole.kwh)
    return f"{number(whole.kwh, whole.uncertainty_kwh, factor)} {unit}"


def _experiments(comparison: Comparison) -> Table:
    quality, own = comparison.quality, {row.experiment: row for row in comparison.experiments}
    factor, unit = unit_of(max((row.total_with_lineage_kwh or 0.0 for row in own.values()), default=0.0) or 1.0)
    energies = {"teacher": "teacher", "student": "student", "total": "total", "total_with_lineage": "total with policy"}
    head = ["experiment", "runs", *(f"{title} [{unit}]" for title in energies.values()), "J/loss token", quality]
    rows = []
    for row in comparison.groups:
        members = [own[name] for name in row.members]
        rows.append(
            [
                *(row.group, str(row.runs)),
                *(_mean(row, members, f"{name}_kwh", f"{name}_uncertainty_kwh", factor) for name in energies),
                _mean(row, members, "joules_per_token", "joules_per_token_uncertainty"),
                number(row.column(f"{quality}_mean"), row.column(f"{quality}_sd")),
                "" if comparison.pareto_refused is not None else _front(row),
                *(
                    "; ".join(dict.fromkeys(filter(None, (m.column(key) for m in members))))
                    for key in ("energy_class", "boundary")
                ),
            ]
        )
    return Table("experiments", "Experiments", [*head, "Pareto front (chance)", "class", "boundary"], rows)


def _front(row: GroupRow) -> str:
    """Whether a group is on the Pareto front, with the chance of it where that is known."""
    chance = row.pareto_probability
    return ("yes" if row.pareto else "no") + ("" if chance is None else f" ({chance:.0%})")


def _mean(row: GroupRow, members: Sequence[ExperimentRow], key: str, error: str, factor: float = 1.0) -> str:
    """Mean over runs with their spread; of one run, the value with the half-width by its meters."""
    spread = row.column(f"{key}_sd")
    return number(row.column(f"{key}_mean"), spread if spread is not None else members[0].column(error), factor)


def _verdict(row: Verdict) -> tuple[str, str, str, str]:
    interval = "" if row.low is None else f"{row.low:.4g} to {'never' if row.high is None else format(row.high, '.4g')}"
    never = None if row.never_probability is None else 100 * row.never_probability
    return (row.experiment, row.verdict, interval, _percent(never))


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.3g} %"
