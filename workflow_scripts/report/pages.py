r"""The comparison as a page (answer.html, opens offline), as Markdown, and as LaTeX for \input (with booktabs)."""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from workflow_scripts.accounting.rows import Comparison, names
from workflow_scripts.report.answer_tables import answer_tables, campaign_text

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
    environment.filters |= {"latex": latex, "markdown": markdown, "pipe": lambda table: table.markdown(markdown)}
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
