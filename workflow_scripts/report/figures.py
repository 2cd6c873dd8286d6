"""Figures as SVG, readable in grey: colours of one palette made for colour-blind readers, with hatches, markers and dashes.

Every file is byte-equal for equal input. A figure that has nothing to show says why in its place.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
import textwrap
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("MPLCONFIGDIR", tempfile.gettempdir())

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch

from workflow_scripts.accounting.answer import Answers
from workflow_scripts.accounting.model import ExperimentSummary
from workflow_scripts.accounting.rows import Comparison
from workflow_scripts.energy.model import StageRecord
from workflow_scripts.energy.uncertainty import KWH
from workflow_scripts.report.rounding import number, rounded, unit_of

matplotlib.rc("svg", hashsalt="comparison")  # else ids in the file are random
matplotlib.rc("hatch", linewidth=0.8)
matplotlib.rc("axes.spines", top=False, right=False)

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
SIZE = (5.4, 3.9)  # inches: read on a phone's width
LINE = 0.2  # inches of a line of text
TIP = "tip: "  # begins the id of an element that says the rest of it when a pointer rests on it
DOTS = 2000  # of held-out rows, more make the page heavy
_QUALITY = {
    "cross_entropy": "held-out cross entropy [nats/token], lower is better",
    "bits_per_byte": "held-out bits per byte of the answers, lower is better",
    "kl_to_teacher": "KL to the teacher [nats/token], lower is better",
    "top1_agreement": "top-1 agreement with the teacher, higher is better",
}


def energy_by_stage(summaries: list[ExperimentSummary], path: Path, unlike: list[str]) -> None:
    """Stacked bars: every stage in the style of its role, phases but the work itself paler; what has no figure is named."""
    sums = [sum(spent.kwh for r in s.own.values() if (spent := r.spent) is not None) for s in summaries]
    factor, unit = unit_of(max(sums, default=0.0))
    height = 1.5 + row_inches(0.42, (s.experiment_name for s in summaries))
    figure, axes = plt.subplots(figsize=(6.6, height), layout="constrained")
    names, right = [], 0.0
    for row, summary in enumerate(summaries):
        left, whole = 0.0, summary.spent() if not summary.problems else None
        for role, (colour, hatch) in ROLE_STYLE.items():
            for record in (r for r in summary.of(role) if r.spent is not None):
                for phase, joules in _phases(record).items():
                    style = {"color": colour, "hatch": hatch, "edgecolor": "white", "alpha": 1.0 if phase == "work" else 0.5}
                    width = joules / KWH * factor
                    (bar,) = axes.barh(row, width, left=left, linewidth=0.8, height=0.7, **style)
                    bar.set_gid(f"{TIP}{summary.experiment_name}, {record.stage_name}, {phase}: {rounded(width, 3)} {unit}")
                    left += width
        known = whole.uncertainty_kwh if whole else None
        spread = (known or 0.0) * factor
        if known is not None:
            axes.errorbar(left, row, xerr=spread, color="black", capsize=4, linewidth=1.2)
        label = f"{number(left, spread, digits=3)} {unit}"
        axes.text(left + spread, row, f"  {label if whole else '≥ ' + label}", va="center", fontsize=9)
        right = max(right, left + spread)
        unknown = [*(problem.stage for problem in summary.problems), *(n for n, r in summary.own.items() if r.spent is None)]
        missing = textwrap.fill(f"no figure: {', '.join(dict.fromkeys(unknown))}", 30) if unknown else ""
        names.append("\n".join(filter(None, (fold(summary.experiment_name), missing))))
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, right * 1.28 or 1)
    classes = sorted({s.energy.energy_class for s in summaries})
    axes.set_xlabel(f"energy at the IT boundary [{unit}], {'/'.join(classes)}")
    keys = [Patch(facecolor=c, hatch=h, edgecolor="white", label=role) for role, (c, h) in ROLE_STYLE.items()]
    figure.legend(handles=keys, loc="outside upper center", ncol=5, frameon=False, handlelength=2.2, handleheight=1.2)
    save(figure, path, unlike)


def _phases(record: StageRecord) -> dict[str, float]:
    """Joules of a stage by phase, what no phase has as `rest`; all of it as `work` where the record has no phases."""
    whole = record.spent.value if record.spent else 0.0
    known = {name: phase.joules for name, phase in record.phases.items() if phase.joules}
    if not known or sum(known.values()) > whole * 1.001:
        return {"work": whole}
    rest = whole - sum(known.values())
    return known | ({"rest": rest} if rest > 0.001 * whole else {})


def energy_quality(comparison: Comparison, answers: Answers, path: Path) -> None:
    """Energy to every quality with its band over seeds; the final models as points, filled where the front is likely theirs."""
    arms = {name: arm for name, arm in answers.arms.items() if arm.judged}
    if comparison.quality_refused or not arms:
        empty(path, comparison.pareto_refused or f"no experiment has both an energy and {comparison.quality}")
        return
    ends = {name: float(arm.over_seeds(lambda run: run.joules[-1]).mean()) / KWH for name, arm in arms.items()}
    factor, unit = unit_of(max(ends.values()))
    figure, axes = plt.subplots(figsize=(SIZE[0], SIZE[1] + legend_inches(arms)), layout="constrained")
    chances = {row.group: row.pareto_probability or 0.0 for row in comparison.groups}
    finals = {row.group: row.column(f"{comparison.quality}_mean") for row in comparison.groups}
    for i, (name, arm) in enumerate(arms.items()):
        colour, own = COLOURS[i % len(COLOURS)], [row for row in comparison.levels if row.experiment == name]
        axes.plot([r.kwh * factor for r in own], [r.quality for r in own], color=colour, linestyle=turned(DASHES, i))
        if own and own[0].low_kwh is not None:
            band = ([(row.column(key) or 0.0) * factor for row in own] for key in ("low_kwh", "high_kwh"))
            axes.fill_betweenx([row.quality for row in own], *band, color=colour, alpha=0.15, linewidth=0)
        for run in arm.runs:
            axes.plot(run.joules / KWH * factor, np.abs(run.loss), ".", color=colour, markersize=3, alpha=0.5)
        (point,) = axes.plot(ends[name] * factor, finals[name], turned(MARKERS, i), color=colour, markersize=8, label=name)
        point.set(markerfacecolor=colour if chances[name] >= 0.5 else "white")
        point.set_gid(f"{TIP}{name}: {rounded(ends[name] * factor, 3)} {unit}, {comparison.quality} {rounded(finals[name], 4)}")
    axes.set_xlim(left=0)
    axes.set_xlabel(f"energy of the training's work, with its starting policy's [{unit}]")
    axes.set_ylabel(textwrap.fill(_QUALITY.get(comparison.quality, comparison.quality), 34))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncol=columns(arms), frameon=False)
    save(figure, path, [])


def cost_by_reuse(comparison: Comparison, path: Path) -> None:
    """E(N) against N with its band over seeds and the baseline's level, and below N* at every quality."""
    rows, stars = comparison.amortised, [row for row in comparison.levels if row.reuses_low is not None]
    if not rows:
        refused = any(row.refusals for row in comparison.answers)
        why = "no method with a teacher's output is comparable" if refused else "no method with a teacher has a known cost"
        empty(path, why)
        return
    factor, unit = unit_of(max(row.amortised_kwh for row in rows))
    height = SIZE[1] * (1.7 if stars else 1.0) + LINE * max(0, len({row.experiment for row in rows}) - 4)
    figure, grid = plt.subplots(1 + bool(stars), 1, figsize=(SIZE[0], height), layout="constrained", squeeze=False)
    order, golds = [row.group for row in comparison.groups], {row.experiment: row.baseline for row in comparison.answers}
    for name in dict.fromkeys(row.experiment for row in rows):
        i, own = order.index(name), [row for row in rows if row.experiment == name]
        style = {"color": COLOURS[i % len(COLOURS)], "linestyle": turned(DASHES, i)}
        where = "whole trainings" if own[0].target is None else f"to {rounded(own[0].target, 4)}"
        once = " (without an interval)" if own[0].low_kwh is None else ""
        axes, reuses = grid[0][0], [row.reuses for row in own]
        axes.plot(reuses, [row.amortised_kwh * factor for row in own], label=f"{name}, {where}{once}", **style)
        _band(axes, reuses, [(row.low_kwh, row.high_kwh) for row in own], factor, style["color"])
        (level,) = axes.plot(reuses, [(row.baseline_kwh or 0.0) * factor for row in own], color="black", linewidth=0.9)
        theirs = f"{rounded((own[0].baseline_kwh or 0) * factor, 3)} {unit}"
        level.set_gid(f"{TIP}{golds[name]} to the same quality as {name}: {theirs}")
        here = next(row for row in own if row.here)
        (marker,) = axes.plot(here.reuses, here.amortised_kwh * factor, turned(MARKERS, i), color=style["color"])
        marker.set_gid(f"{TIP}{name}, used by {here.reuses} here: {rounded(here.amortised_kwh * factor, 3)} {unit} each")
        if points := [row for row in stars if row.experiment == name]:
            below, quality = grid[1][0], [row.quality for row in points]
            below.plot(quality, [row.reuses for row in points], label=name, **style)
            far = 10 * max(row.reuses or 0.0 for row in stars)
            bounds = [(row.reuses_low, row.reuses_high or far) for row in points]
            _band(below, quality, bounds, 1.0, style["color"])
            below.set_ylim(bottom=0.5, top=far)
    grid[0][0].set(xscale="log", xlabel="N, trainings that use the teacher's output", ylabel=f"teacher / N + training [{unit}]")
    grid[0][0].set_ylim(bottom=0)
    if stars:
        grid[1][0].set(yscale="log", xlabel=f"{comparison.quality} to reach", ylabel="N*: reuses until it pays")
    for axes in grid[:, 0]:
        axes.grid(alpha=0.3, which="both")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper center", frameon=False)
    save(figure, path, [])


def _band(axes: Any, xs: list[Any], bounds: Sequence[tuple[float | None, float | None]], factor: float, colour: Any) -> None:
    """An interval along a curve, where it is known."""
    pairs = zip(xs, bounds, strict=True)
    known = [(x, low * factor, high * factor) for x, (low, high) in pairs if low is not None and high is not None]
    if known:
        axes.fill_between(*zip(*known, strict=True), color=colour, alpha=0.15, linewidth=0)


def quality_by_row(comparison: Comparison, answers: Answers, path: Path) -> None:
    """By held-out row, how much better than the baseline's each final model is, mean over seeds; and the 95 % of the mean."""
    arms, bases = answers.comparable, answers.arms
    shown = [row for row in comparison.answers if row.experiment in arms and row.baseline in bases]
    pairs = [(row, bases[row.baseline], arms[row.experiment]) for row in shown]
    if not pairs or any(len({len(r.rows) for r in (*base.runs, *arm.runs)} | {0}) != 2 for _, base, arm in pairs):
        empty(path, "no method is comparable, or the evaluations kept no loss by row")
        return
    height = 1.3 + row_inches(0.6, (row.experiment for row, *_ in pairs))
    figure, axes = plt.subplots(figsize=(SIZE[0], height), layout="constrained")
    for i, (row, base, arm) in enumerate(pairs):
        theirs, tokens = np.mean([run.rows for run in base.runs], axis=0), np.maximum(base.runs[0].tokens, 1)
        colour = COLOURS[[each.group for each in comparison.groups].index(row.experiment) % len(COLOURS)]
        gained = (theirs - np.mean([run.rows for run in arm.runs], axis=0)) / tokens
        dots = gained[:: math.ceil(len(gained) * len(pairs) / DOTS)]
        axes.scatter(dots, i + np.linspace(-0.25, 0.25, len(dots)), s=9, color=colour, alpha=0.4, linewidths=0)
        middle, low, high = row.better or 0.0, row.better_low, row.better_high
        if low is not None and high is not None:
            axes.errorbar(middle, i, xerr=[[middle - low], [high - middle]], color="black", capsize=5, zorder=3)
        (point,) = axes.plot(middle, i, "D", color="black", zorder=3)
        point.set_gid(f"{TIP}{row.experiment}: {rounded(middle, 3)} better than {row.baseline}")
    axes.axvline(0, color="#777777", linewidth=1)
    axes.set_yticks(range(len(pairs)), [fold(row.experiment) for row, *_ in pairs])
    axes.locator_params(axis="x", nbins=5)
    axes.invert_yaxis()
    gold, *others = {row.baseline: None for row, *_ in pairs}
    label = f"better than {'the baseline of its student' if others else gold} by, in {comparison.quality} (dots: held-out rows)"
    axes.set_xlabel(textwrap.fill(label, 70))
    axes.grid(alpha=0.3)
    save(figure, path, [])


def turned(styles: Sequence[Any], i: int) -> Any:
    """The style of the i-th experiment; each time that the colours begin again, another one of a colour."""
    return styles[(i + i // len(COLOURS)) % len(styles)]


def fold(name: str) -> str:
    """A name in lines that leave room for what stands beside it."""
    return textwrap.fill(name, 30)


def row_inches(each: float, names: Iterable[str]) -> float:
    """Height of rows with these names beside them, `each` inches where a name is one line."""
    return sum(each + LINE * fold(name).count("\n") for name in names)


def legend_inches(names: Collection[str]) -> float:
    """What a legend of these names takes beyond two lines."""
    return LINE * max(0, math.ceil(len(names) / columns(names)) - 2)


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
    if unlike:
        note = textwrap.fill(f"Caution, not alike: {', '.join(unlike)}", 110)
        figure.supxlabel(note, fontsize=9, color="#A03000", weight="bold")
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight", pad_inches=0.1)
    plt.close(figure)
    drawn = path.read_text(encoding="utf-8")
    path.write_text(re.sub(f'<g id="{TIP}([^"]*)">', r"<g><title>\1</title>", drawn), encoding="utf-8")
