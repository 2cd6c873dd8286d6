r"""The comparison as a page (answer.html, opens offline), as Markdown, and as LaTeX for \input (with booktabs)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from tabulate import tabulate

from workflow_scripts.accounting.rows import Campaign, Comparison, ExperimentRow, GroupRow, names
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
    "never": "never: a token of the student costs no less",
}
MEASURED = ("training_s", "training_cpu_s", "training_idle_pct")
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


def render(comparison: Comparison, name: str, drawn: Mapping[str, str] | None = None) -> str:
    """One of PAGES: the sentences, what the runs cannot tell, the tables, how the joules were obtained, warnings.

    `drawn` are the figures of the page, SVG by title.
    """
    said = sentences(comparison)
    known = {
        "question": QUESTION,
        "said": [text for text, _ in said],
        "remedies": list(dict.fromkeys(text for _, text in said if text)),
        "refusals": list(dict.fromkeys(refusal(found) for row in comparison.answers for found in row.refusals)),
        "tables": answer_tables(comparison),
        "warnings": comparison.warnings,
        "caption": f"{basis(comparison)} {NOTE} All stages together, shared ones once: {campaign_text(comparison.campaign)}.",
        "figures": {title: Markup(svg) for title, svg in (drawn or {}).items()},
    }
    return template(f"{name}.j2").render(known)


def write(comparison: Comparison, folder: Path) -> None:
    """Write all pages; the figures are those of the folder."""
    drawn = {}
    for file, title in FIGURES.items():
        svg = (folder / file).read_text(encoding="utf-8")
        if len(svg) < HEAVIEST:
            drawn[title] = svg[svg.index("<svg") :]
    for name in PAGES:
        (folder / name).write_text(render(comparison, name, drawn), encoding="utf-8")


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
    """Verdicts, experiments, repayment of the students, how the joules were obtained."""
    factor, unit = unit_of(max((row.baseline_kwh or 0.0 for row in comparison.answers), default=0.0) or 1.0)
    several = len({row.baseline for row in comparison.answers}) > 1
    verdicts = Table(
        "verdicts",
        f"Verdicts against {comparison.baseline}" if comparison.baseline else "Verdicts",
        [
            *(("method", "against") if several else ("method",)),
            *("verdict", "at quality", f"baseline [{unit}]", f"method [{unit}]", f"teacher [{unit}]", "saved (95 %)"),
            *("N* (95 %)", "N* at equal tokens", "final quality better by (95 %)"),
        ],
        [
            [
                *((row.experiment, row.baseline) if several else (row.experiment,)),
                *(row.kind, number(row.target)),
                *(number(value, None, factor) for value in (row.baseline_kwh, row.method_kwh, row.teacher_kwh)),
                _bounds(row.saved, row.saved_low, row.saved_high, 100, " %"),
                _bounds(row.reuses, row.reuses_low, row.reuses_high),
                _bounds(row.equal_tokens, row.equal_tokens_low, row.equal_tokens_high),
                _bounds(row.better, row.better_low, row.better_high),
            ]
            for row in comparison.answers
        ],
        (0, 1, 2) if several else (0, 1),
        "No baseline is named, or it is not among the experiments.",
    )
    others = Table(
        "qualities",
        "Other qualities of the final models",
        ["method", "quality", "method's", "baseline's", "better by (95 %)"],
        [
            [
                *(row.experiment, row.quality, number(row.final), number(row.baseline_final)),
                row.why_not or _bounds(row.better, row.better_low, row.better_high),
            ]
            for row in comparison.qualities
        ],
        (0, 1),
        "None was evaluated.",
    )
    repaid = Table(
        "repayment",
        "Generated tokens until making the student is repaid, against serving its teacher (T*)",
        ["experiment", "T* (95 %)", "teacher [J/token]", "student [J/token]", "students pooled"],
        [
            [
                *(row.experiment, WHY_NOT.get(row.why_not or "") or _bounds(row.tokens, row.low, row.high)),
                *(number(row.reference_j_per_token), number(row.student_j_per_token), str(row.pooled or "")),
            ]
            for row in comparison.repayment
        ],
        (0, 1),
    )
    factor, unit = unit_of(max((row.kwh for row in comparison.sources), default=1.0) or 1.0)
    sources = Table(
        "sources",
        "How the joules were obtained",
        ["component", "method", "class", f"energy [{unit}]", f"by a second method [{unit}]", "uncertainty [%]"],
        [
            [
                *(row.component, row.method, row.energy_class),
                *(number(row.kwh, None, factor), number(row.second_kwh, None, factor), number(row.uncertainty_pct)),
            ]
            for row in comparison.sources
        ],
        (0, 1, 2),
    )
    return [verdicts, _experiments(comparison), others, repaid, sources]


def campaign_text(whole: Campaign) -> str:
    """What all compared experiments cost together."""
    factor, unit = unit_of(whole.kwh)
    return f"{number(whole.kwh, whole.uncertainty_kwh, factor)} {unit}"


def _experiments(comparison: Comparison) -> Table:
    quality, own = comparison.quality, {row.experiment: row for row in comparison.experiments}
    factor, unit = unit_of(max((row.method_kwh or 0.0 for row in own.values()), default=0.0) or 1.0)
    energies = {"teacher": "teacher", "student": "training", "lineage": "policy", "method": "method", "beside": "beside it"}
    head = [
        "experiment",
        "runs",
        *(f"{title} [{unit}]" for title in energies.values()),
        "training [s]",
        "CPU [s]",
        "idle part [%]",
        "J/loss token",
        "of its work",
        quality,
    ]
    refused = comparison.pareto_refused is not None
    second = comparison.quality != FOLLOWED and any(row.quality == FOLLOWED for row in comparison.qualities)
    rows = []
    for row in comparison.groups:
        members = [own[name] for name in row.members]
        chances = [row.pareto_probability, *([row.pareto_of_instructions] if second else [])]
        rows.append(
            [
                *(row.group, str(row.runs)),
                *(_mean(row, members, f"{name}_kwh", f"{name}_uncertainty_kwh", factor) for name in energies),
                *(number(row.column(f"{name}_mean"), row.column(f"{name}_sd")) for name in MEASURED),
                _mean(row, members, "joules_per_token", "joules_per_token_uncertainty"),
                number(row.column("work_joules_per_token_mean"), row.column("work_joules_per_token_sd")),
                number(row.column(f"{quality}_mean"), row.column(f"{quality}_sd")),
                *("" if refused else "not known" if chance is None else f"{chance:.0%}" for chance in chances),
            ]
        )
    fronts = ["chance of the Pareto front", *([f"with {FOLLOWED}"] if second else [])]
    return Table("experiments", "What each method costs", [*head, *fronts], rows)


def _mean(row: GroupRow, members: Sequence[ExperimentRow], key: str, error: str, factor: float = 1.0) -> str:
    """Mean over runs with their spread; of one run, the value with the half-width by its meters."""
    spread = row.column(f"{key}_sd")
    return number(row.column(f"{key}_mean"), spread if spread is not None else members[0].column(error), factor)


def _bounds(value: float | None, low: float | None, high: float | None, factor: float = 1.0, unit: str = "") -> str:
    """A value with its interval, an upper bound that is not there is `never`."""
    if low is None:
        return "" if value is None else f"{rounded(factor * value, 2)}{unit} (no interval)"
    first = "never" if value is None else rounded(factor * value, 2)
    last = "never" if high is None else rounded(factor * high, 2)
    return f"{first}{unit} ({rounded(factor * low, 2)} to {last})"
