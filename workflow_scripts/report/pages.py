r"""The comparison as a page (answer.html, opens offline), as Markdown, and as LaTeX for \input (with booktabs)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from tabulate import tabulate

from workflow_scripts.accounting.rows import Comparison, names
from workflow_scripts.report.rounding import number, rounded, unit_of
from workflow_scripts.report.sentences import QUESTION, refusal, sentences
from workflow_scripts.settings.evaluation import FOLLOWED

NOTE = "Empty: not known, or does not apply. ±: half-width by the meters' uncertainties, or standard deviation over runs."
FIGURES = {
    "energy_quality.svg": "Energy to a quality",
    "cost_by_reuse.svg": "Cost over reuses of the teacher's output",
    "energy_by_stage.svg": "Energy by stage and phase",
    "quality_by_row.svg": "Quality by held-out row",
}
WHY_NOT = {
    "no target": "set comparison.target_quality",
    "target not reached": "does not reach the quality",
    "energy": "an energy is not known",
    "not measured": "joules per token were not measured",
    "boundary": "boundaries differ",
    "hardware": "model and teacher were served on different hardware",
    "undetermined": "not known: its token costs no less here, within the spread or without repeats",
    "never": "never: a token of the student costs no less",
}
HEAVIEST = 600_000  # bytes of a figure on the page; a heavier one (of hundreds of runs) stands in its own file alone
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


def render(comparison: Comparison, name: str, **more: object) -> str:
    """A page of templates/: the sentences, what the runs cannot tell, the tables, how the joules were obtained, warnings."""
    said, whole = sentences(comparison), comparison.campaign
    classes, boundaries = (names(comparison.experiments, key) for key in ("energy_class", "boundary"))
    basis = f"Energy: {'/'.join(classes) or 'unavailable'}, boundary {' | '.join(boundaries) or 'none'}."
    factor, unit = unit_of(whole.kwh)
    campaign = f"{number(whole.kwh, whole.uncertainty_kwh, factor)} {unit}"
    return TEMPLATES.get_template(f"{name}.j2").render(
        comparison=comparison,
        question=QUESTION,
        said=[text for text, _ in said],
        remedies=list(dict.fromkeys(text for _, text in said if text)),
        refusals=list(dict.fromkeys(refusal(found) for row in comparison.answers for found in row.refusals)),
        tables=answer_tables(comparison),
        basis=basis,
        caption=f"{basis} {NOTE} All stages together, shared ones once: {campaign}.",
        **more,
    )


def write(comparison: Comparison, folder: Path) -> None:
    """Write all pages; the figures are those of the folder."""
    drawn = {}
    for file, title in FIGURES.items():
        svg = (folder / file).read_text(encoding="utf-8")
        if len(svg) < HEAVIEST:
            drawn[title] = Markup(svg[svg.index("<svg") :])
    for name in PAGES:
        (folder / name).write_text(render(comparison, name, figures=drawn), encoding="utf-8")


@dataclass(frozen=True)
class Table:
    """Title and rows of text by column; `words` are the columns of words, `empty` says why there is no row."""

    name: str
    title: str
    head: list[str]
    words: tuple[int, ...] = (0,)
    empty: str = ""
    rows: list[list[str]] = field(default_factory=list)

    def in_markdown(self) -> str:
        """The table as Markdown."""
        head, *rows = [[markdown(cell) for cell in row] for row in (self.head, *self.rows)]
        return pipe(rows, head, self.words)


TEMPLATES = Environment(
    loader=PackageLoader("workflow_scripts.report"),
    autoescape=select_autoescape(["html.j2"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters |= {"latex": latex, "markdown": markdown}


def answer_tables(comparison: Comparison) -> list[Table]:
    """Verdicts, experiments, repayment of the students, how the joules were obtained."""
    factor, unit = unit_of(max((row.baseline_kwh or 0.0 for row in comparison.answers), default=0.0) or 1.0)
    several = len({row.baseline for row in comparison.answers}) > 1
    head = [
        *(("method", "against") if several else ("method",)),
        *("verdict", "at quality", f"baseline [{unit}]", f"method [{unit}]", f"teacher [{unit}]", "saved (95 %)"),
        *("N* (95 %)", "N* at equal tokens", "final quality better by (95 %)"),
    ]
    title = f"Verdicts against {comparison.baseline}" if comparison.baseline else "Verdicts"
    title = "Verdicts against the baseline of each student" if several else title
    none = "No baseline is named, or it is not among the experiments."
    verdicts = Table("verdicts", title, head, (0, 1, 2) if several else (0, 1), none)
    for row in comparison.answers:
        cells = [row.experiment, *([row.baseline] if several else []), row.kind, number(row.target)]
        cells += [number(value, None, factor) for value in (row.baseline_kwh, row.method_kwh, row.teacher_kwh)]
        cells.append(_bounds(row.saved, row.saved_low, row.saved_high, 100, " %"))
        cells.append(_bounds(row.reuses, row.reuses_low, row.reuses_high))
        cells.append(_bounds(row.equal_tokens, row.equal_tokens_low, row.equal_tokens_high))
        cells.append(_bounds(row.better, row.better_low, row.better_high))
        verdicts.rows.append(cells)
    head = ["method", "quality", "method's", "baseline's", "better by (95 %)"]
    others = Table("qualities", "Other qualities of the final models", head, (0, 1), "None was evaluated.")
    for other in comparison.qualities:
        better = other.why_not or _bounds(other.better, other.better_low, other.better_high)
        others.rows.append([other.experiment, other.quality, number(other.final), number(other.baseline_final), better])
    head = ["experiment", "T* (95 %)", "teacher [J/token]", "student [J/token]", "students pooled"]
    title = "Generated tokens until making the student is repaid, against serving its teacher (T*)"
    repaid = Table("repayment", title, head, (0, 1))
    for student in comparison.repayment:
        tokens = WHY_NOT.get(student.why_not or "") or _bounds(student.tokens, student.low, student.high)
        per_token = [number(student.reference_j_per_token), number(student.student_j_per_token)]
        repaid.rows.append([student.experiment, tokens, *per_token, str(student.pooled or "")])
    factor, unit = unit_of(max((row.kwh for row in comparison.sources), default=1.0) or 1.0)
    head = ["component", "method", "class", f"energy [{unit}]", f"by a second method [{unit}]", "uncertainty [%]"]
    sources = Table("sources", "How the joules were obtained", head, (0, 1, 2))
    for source in comparison.sources:
        figures = [number(source.kwh, None, factor), number(source.second_kwh, None, factor), number(source.uncertainty_pct)]
        sources.rows.append([source.component, source.method, source.energy_class, *figures])
    return [verdicts, _experiments(comparison), others, repaid, sources]


def _experiments(comparison: Comparison) -> Table:
    quality, own = comparison.quality, {row.experiment: row for row in comparison.experiments}
    factor, unit = unit_of(max((row.method_kwh or 0.0 for row in own.values()), default=0.0) or 1.0)
    energies = {"teacher": "teacher", "student": "training", "lineage": "policy", "method": "method", "beside": "beside it"}
    columns = [  # title, column of the means over runs, column of what the meters of one run tell of its error, factor
        *((f"{title} [{unit}]", f"{name}_kwh", f"{name}_uncertainty_kwh", factor) for name, title in energies.items()),
        ("training [s]", "training_s", "", 1.0),
        ("CPU [s]", "training_cpu_s", "", 1.0),
        ("idle part [%]", "training_idle_pct", "", 1.0),
        ("J/loss token", "joules_per_token", "joules_per_token_uncertainty", 1.0),
        ("of its work", "work_joules_per_token", "", 1.0),
        (quality, quality, "", 1.0),
    ]
    refused = comparison.pareto_refused is not None
    second = comparison.quality != FOLLOWED and any(row.quality == FOLLOWED for row in comparison.qualities)
    fronts = ["chance of the Pareto front", *([f"with {FOLLOWED}"] if second else [])]
    head = ["experiment", "runs", *(title for title, *_ in columns), *fronts]
    table = Table("experiments", "What each method costs", head)
    for row in comparison.groups:
        cells = [row.group, str(row.runs)]
        for _, key, error, by in columns:
            spread = row.column(f"{key}_sd")
            if spread is None:
                spread = own[row.members[0]].column(error)
            cells.append(number(row.column(f"{key}_mean"), spread, by))
        chances = [row.pareto_probability, *([row.pareto_of_instructions] if second else [])]
        table.rows.append(cells + ["" if refused else "not known" if chance is None else f"{chance:.0%}" for chance in chances])
    return table


def _bounds(value: float | None, low: float | None, high: float | None, factor: float = 1.0, unit: str = "") -> str:
    """A value with its interval; what is not there beside a lower bound is `never`."""
    if value is None and low is None:
        return ""
    first, least, last = ("never" if figure is None else rounded(factor * figure, 2) for figure in (value, low, high))
    return f"{first}{unit} (no interval)" if low is None else f"{first}{unit} ({least} to {last})"
