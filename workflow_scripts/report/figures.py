"""Figures as SVG, readable in grey: colours of one palette made for colour-blind readers, with hatches, markers and dashes.

Every file is byte-equal for equal input. A figure that has nothing to show says why in its place.
"""

from __future__ import annotations

import os
import tempfile
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("MPLCONFIGDIR", tempfile.gettempdir())

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from workflow_scripts.accounting.model import ExperimentSummary
from workflow_scripts.accounting.rows import BreakEven, Comparison
from workflow_scripts.report.rounding import number, rounded, unit_of

matplotlib.rcParams["svg.hashsalt"] = "comparison"  # else ids in the file are random
matplotlib.rcParams["hatch.linewidth"] = 0.8

# Okabe & Ito 2008
ROLE_STYLE = {
    "prerun": ("#BBBBBB", ""),
    "data": ("#56B4E9", "///"),
    "teacher": ("#E69F00", "..."),
    "student": ("#0072B2", ""),
    "evaluation": ("#CC79A7", "\\\\\\"),
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
_QUALITY = {
    "cross_entropy": "held-out cross entropy [nats/token], lower is better",
    "bits_per_byte": "held-out bits per byte of the answers, lower is better",
    "kl_to_teacher": "KL to the teacher [nats/token], lower is better",
    "top1_agreement": "top-1 agreement with the teacher, higher is better",
}


def energy_by_stage(summaries: list[ExperimentSummary], path: Path, unlike: list[str]) -> None:
    """Stacked bars: every stage of each experiment in the style of its role; a stage without a figure is named at the bar."""
    known = [sum(spent.kwh for r in s.own.values() if (spent := r.spent) is not None) for s in summaries]
    factor, unit = unit_of(max(known, default=0.0))
    figure, axes = plt.subplots(figsize=(9, 1.9 + 0.6 * len(summaries)), layout="constrained")
    names, right = [], 0.0
    for row, summary in enumerate(summaries):
        left, whole = 0.0, summary.spent() if not summary.problems else None
        for role, (colour, hatch) in ROLE_STYLE.items():
            for width in (spent.kwh * factor for r in summary.of(role) if (spent := r.spent) is not None):
                axes.barh(row, width, left=left, color=colour, hatch=hatch, edgecolor="white", linewidth=0.8, height=0.7)
                left += width
        label, end = f"{rounded(left, 3)} {unit}", left
        if whole is not None and (spread := whole.uncertainty_kwh) is not None:
            axes.errorbar(left, row, xerr=spread * factor, color="black", capsize=4, linewidth=1.2)
            label, end = f"{number(left, spread * factor, digits=3)} {unit}", left + spread * factor
        axes.text(end, row, f"  {label if whole is not None else '≥ ' + label}", va="center", fontsize=9)
        right = max(right, end)
        unknown = [*(problem.stage for problem in summary.problems), *(n for n, r in summary.own.items() if r.spent is None)]
        missing = textwrap.fill(f"no figure: {', '.join(dict.fromkeys(unknown))}", 30) if unknown else ""
        names.append("\n".join(filter(None, (summary.experiment_name, missing))))
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, right * 1.28 or 1)
    classes = sorted({s.energy.energy_class for s in summaries})
    axes.set_xlabel(f"energy at the IT boundary [{unit}], {'/'.join(classes)}")
    keys = [Patch(facecolor=c, hatch=h, edgecolor="white", label=role) for role, (c, h) in ROLE_STYLE.items()]
    figure.legend(handles=keys, loc="outside upper center", ncol=5, frameon=False, handlelength=2.2, handleheight=1.2)
    save(figure, path, unlike)


def energy_quality(comparison: Comparison, path: Path) -> None:
    """Energy against quality, one point per experiment (mean of its runs); the Pareto front is filled and joined."""
    quality, refused = comparison.quality, comparison.pareto_refused
    known = [(row, row.column("total_with_lineage_kwh_mean"), row.column(f"{quality}_mean")) for row in comparison.groups]
    points = [(row, x, y) for row, x, y in known if x is not None and y is not None]
    if not points or comparison.quality_refused:
        empty(path, refused or f"no experiment has both an energy and {quality}")
        return
    factor, unit = unit_of(max(x for _, x, _ in points))
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    front = sorted((x * factor, y) for row, x, y in points if row.pareto)
    axes.step([x for x, _ in front], [y for _, y in front], ":", where="post", color="#777777", zorder=1)
    half_widths = {row.experiment: row.total_with_lineage_uncertainty_kwh for row in comparison.experiments}
    for i, (row, x, y) in enumerate(points):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        # the instruments' half-width, from two runs on the runs' spread if that is larger
        spreads = [*(half_widths[name] for name in row.members), row.column("total_with_lineage_kwh_sd")]
        spread = max((width * factor for width in spreads if width is not None), default=None)
        dy = row.column(f"{quality}_sd")
        axes.errorbar(x * factor, y, xerr=spread, yerr=dy, color=colour, alpha=0.6, zorder=2, capsize=4, linewidth=1.2)
        fill, label = colour if row.pareto else "white", row.group + (f" (mean of {row.runs} runs)" if row.runs > 1 else "")
        axes.plot(x * factor, y, marker, markersize=9, color=colour, markerfacecolor=fill, linestyle="", label=label, zorder=3)
    axes.margins(x=0.12, y=0.15)
    axes.set_xlabel(f"energy of the experiment, its starting policy's included [{unit}]")
    axes.set_ylabel(_QUALITY.get(quality, quality))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncol=columns(row.group for row, _, _ in points), frameon=False)
    title = f"no Pareto front: {refused}" if refused else "filled, dotted line: Pareto front"
    axes.set_title(textwrap.fill(title, 90), fontsize=9, loc="right")
    save(figure, path, comparison.differs)


def cost_by_reuse(comparison: Comparison, path: Path) -> None:
    """E(N) against N with its 95 % band, the baseline as a level, N* marked with its interval."""
    rows = [row for row in comparison.amortised if row.teacher_share_kwh > 0]
    if not rows:
        empty(path, "no experiment with a teacher's output has a known cost")
        return
    by_name = {name: [r for r in rows if r.experiment == name] for name in dict.fromkeys(r.experiment for r in rows)}
    factor, unit = unit_of(max(r.amortised_kwh for r in rows))
    figure, axes = plt.subplots(figsize=(8.5, 5.4), layout="constrained")
    order, baseline = [row.group for row in comparison.groups], rows[0].baseline_kwh
    stars = {row.experiment: row for row in comparison.break_even}
    for name, own in by_name.items():
        i, label = order.index(name), name
        colour = COLOURS[i % len(COLOURS)]
        reuses = [r.reuses for r in own]
        axes.plot(reuses, [r.amortised_kwh * factor for r in own], color=colour, linestyle=DASHES[i % len(DASHES)])
        if own[0].low_kwh is not None:
            low, high = ([(r.column(key) or 0.0) * factor for r in own] for key in ("low_kwh", "high_kwh"))
            axes.fill_between(reuses, low, high, color=colour, alpha=0.12, linewidth=0)
        star = stars.get(name)
        if star is not None:
            label += f": {_pays(star)}"
        axes.plot([], [], color=colour, linestyle=DASHES[i % len(DASHES)], marker=MARKERS[i % len(MARKERS)], label=label)
        here = next(r for r in own if r.here)
        axes.plot(here.reuses, here.amortised_kwh * factor, MARKERS[i % len(MARKERS)], color=colour, markersize=7)
        if star is not None and star.reuses and baseline is not None:
            _mark(axes, star, star.reuses, baseline * factor, reuses[-1], colour)
    if baseline is not None:
        label = f"{comparison.baseline}: no teacher"
        axes.axhline(baseline * factor, color="black", linewidth=1.2, label=label)
    axes.set_xscale("log")
    axes.set_xlim(0.9, max(r.reuses for r in rows) * 1.1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("N, students that use the teacher's output (markers: as many as here)")
    axes.set_ylabel(f"teacher's output / N + training [{unit}]")
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside upper center", ncol=1 if len(by_name) < 5 else 2, frameon=False)
    save(figure, path, comparison.differs)


def _pays(star: BreakEven) -> str:
    """The break-even in a few words."""
    if star.reuses is None:
        return star.status
    text = f"pays from N* = {star.reuses:.3g}"
    if star.low is None:
        return f"{text} (one run: no interval)" if star.basis == "one instrument" else text
    high = f"{star.high:.3g}" if star.high is not None else "never"
    return f"{text} (95 %: {star.low:.3g} to {high}{'' if star.basis == 'runs' else '; meters only, one run'})"


def _mark(axes: Any, star: BreakEven, reuses: float, level: float, last: int, colour: str) -> None:
    """N* on the baseline's level: a star, and a bar for its interval, to the edge where the upper bound is `never`."""
    if reuses > last:
        return  # beyond the axis; the legend has the number
    axes.plot(reuses, level, marker="*", markersize=15, color=colour, markeredgecolor="black", zorder=4)
    if star.low is not None:
        right = min(star.high, last) if star.high is not None else last
        axes.plot([star.low, right], [level, level], color=colour, linewidth=4, alpha=0.5, zorder=3)


def columns(names: Iterable[str]) -> int:
    """Columns of a legend in which the longest name has room."""
    lengths = [len(name) + 8 for name in names]
    return max(1, min(4, len(lengths), 90 // max(lengths, default=90)))


def empty(path: Path, why: str) -> None:
    """A figure that says why there is nothing to show."""
    figure, axes = plt.subplots(figsize=(8, 1.6), layout="constrained")
    axes.axis("off")
    axes.text(0.5, 0.5, textwrap.fill(f"Nothing to show: {why}", 95), ha="center", va="center", fontsize=10)
    save(figure, path, [])


def save(figure: Any, path: Path, unlike: list[str]) -> None:
    """Write the figure; what the experiments do not agree on stands under it."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    if unlike:
        note = textwrap.fill(f"Caution, not alike: {', '.join(unlike)}", 110)
        figure.supxlabel(note, fontsize=9, color="#A03000", weight="bold")
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight", pad_inches=0.1)
    plt.close(figure)
