"""Figures over the course of a stage: power over time, loss over joules."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from workflow_scripts.accounting.groups import group
from workflow_scripts.accounting.model import ROLES, ExperimentSummary
from workflow_scripts.accounting.rows import StageKey, stage_key, users
from workflow_scripts.accounting.traces import TraceError, energy_curve, intermediate_evaluations, loss_curve, power_curve
from workflow_scripts.energy.model import StageRecord
from workflow_scripts.report.figures import COLOURS, DASHES, MARKERS, ROLE_STYLE, columns, empty, save, turned

COLUMNS = 4
METRICS = {
    "cross_entropy": "cross entropy on the training text\n[nats/token]",
    "loss": "loss that the training minimises\n(kinds differ by pipeline)",
    "eval_loss": "loss on held-out text\n[nats/token; dpo: its own]",
}


def power(summaries: list[ExperimentSummary], path: Path) -> list[str]:
    """A panel per run of a stage, shared ones once: mean power [W] over time; attempts follow one another, split by a line.

    Returns a warning that names the stages without a trace.
    """
    panels, missing = [], []
    for title, record, near in _stages(summaries):
        curves = []
        for attempt in (one for one in record.attempts if one.total_j is not None):  # a merge of half a second has no figure
            try:
                curves.append(power_curve(energy_curve(record, attempt, near)))
            except TraceError as error:
                missing.append(f"{title.replace(chr(10), ' of ')} ({error})")
        if curves:
            panels.append((title, record.role, curves))
    if panels:
        _grid(panels, path)
    else:
        empty(path, "no stage has a power trace" + (f": {missing[0]}" if missing else ""))
    return [f"no power over time of {len(missing)} attempt(s): {_some(missing)}"] if missing else []


def _some(texts: list[str]) -> str:
    """The first few of them, and how many there are more."""
    more = f"; and {len(texts) - 3} more" if len(texts) > 3 else ""
    return "; ".join(texts[:3]) + more


def _stages(summaries: list[ExperimentSummary]) -> list[tuple[str, StageRecord, Path]]:
    """Title, record, summary path of every run of a stage that has energy, in the order of the roles."""
    found: dict[StageKey, tuple[str, StageRecord, Path]] = {}
    shares = users(summaries)
    for summary in summaries:
        for stage, record in summary.own.items():
            if record.spent is not None:
                key = stage_key(stage, record)
                title = stage if len(shares[key]) > 1 else f"{stage}\n{summary.experiment_name}"
                found.setdefault(key, (title, record, summary.path))
    return sorted(found.values(), key=lambda entry: ROLES.index(entry[1].role))


def _grid(panels: list[Any], path: Path) -> None:
    rows = math.ceil(len(panels) / COLUMNS)
    figure, grid = plt.subplots(rows, COLUMNS, figsize=(11, 0.6 + 2.1 * rows), sharey=True, layout="constrained", squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    longest = max(edges[-1] for _, _, curves in panels for edges, _ in curves)
    scale, unit = (1 / 3600, "h") if longest > 2 * 3600 else (1 / 60, "min") if longest > 300 else (1.0, "s")
    for axes, (title, role, curves) in zip(grid.flat, panels, strict=False):
        colour, hatch = ROLE_STYLE[role]
        begin = 0.0
        for number, (edges, watts) in enumerate(curves):
            times = (begin + edges) * scale
            axes.stairs(watts, times, fill=True, facecolor=colour, hatch=hatch, edgecolor="white", linewidth=0)
            axes.stairs(watts, times, color="black", linewidth=1)
            if number:
                axes.axvline(begin * scale, color="black", linestyle=":", linewidth=1)
            begin += edges[-1]
        axes.set_title("\n".join(textwrap.shorten(line, 34, placeholder="…") for line in title.split("\n")), fontsize=9)
        axes.set_xlim(0, begin * scale)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        axes.locator_params(axis="x", nbins=5)
    grid.flat[0].set_ylim(bottom=0)  # shared; set in the loop it would freeze the top at the panels so far
    figure.supylabel("mean power [W]", fontsize=10)
    figure.supxlabel(f"time since the stage began [{unit}]", fontsize=10)
    save(figure, path, [])


def loss(summaries: list[ExperimentSummary], path: Path) -> list[str]:
    """A panel per metric: losses over the joules of the trainings of all rounds, attempts that were repeated included.

    Held-out losses are drawn over what the training itself had used, without the intermediate evaluations and lost attempts.

    Returns a warning that names the trainings whose ledger cannot be read.
    """
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {metric: {} for metric in METRICS}
    missing = []
    for summary in summaries:
        before = dict.fromkeys(curves, 0.0)  # of earlier rounds
        for record in sorted((r for r in summary.trainings if r.spent is not None), key=lambda r: r.start_time):
            try:
                for metric, own in curves.items():
                    if points := _points(record, metric, summary.path):
                        drawn = own.setdefault(summary.experiment_name, [])
                        drawn += [(before[metric] + joules, loss) for joules, loss in points]
            except TraceError as error:
                missing.append(f"{summary.experiment_name} ({error})")
            evaluated = record.phases["evaluate"].joules or 0.0 if "evaluate" in record.phases else 0.0
            alone, whole = (record.kept or 0.0) - evaluated * record.share_kept, record.total_energy_joules or 0.0
            before = {metric: joules + (alone if metric == "eval_loss" else whole) for metric, joules in before.items()}
    shown = {metric: own for metric, own in curves.items() if own}
    if shown:
        _loss_panels(shown, {name: each.name for each in group(summaries) for name in each.members}, path)
    else:
        empty(path, "no training reported a loss with its joules" + (f": {missing[0]}" if missing else ""))
    return [f"no loss over joules of {len(missing)} training(s): {_some(missing)}"] if missing else []


def _points(record: StageRecord, metric: str, near: Path) -> list[tuple[float, float]]:
    """Points (joules, value); those of intermediate evaluations at the joules of the training without the evaluations.

    Raises TraceError where these are not known: a point at other joules would not compare with those of other trainings.
    """
    known = intermediate_evaluations(record, near) if metric == "eval_loss" else None
    if known is None:
        return loss_curve(record, metric, near)
    if known.joules is None:
        raise TraceError(f"held-out loss: {known.reason}")
    points = [(point.training_joules, point.eval_loss) for point in known.points]
    return [(joules, loss) for joules, loss in points if joules is not None and loss is not None]


def _loss_panels(shown: dict[str, dict[str, list[tuple[float, float]]]], group_of: dict[str, str], path: Path) -> None:
    """Runs of one experiment look alike and are named once."""
    size = (1.5 + 4.6 * len(shown), 4.6)
    figure, grid = plt.subplots(1, len(shown), figsize=size, sharex=True, layout="constrained", squeeze=False)
    most = max(points[-1][0] for own in shown.values() for points in own.values())
    scale, unit = (1e-6, "MJ") if most > 2e6 else (1e-3, "kJ") if most > 2e3 else (1.0, "J")
    order = list(dict.fromkeys(group_of.values()))
    handles: dict[str, Any] = {}
    for axes, (metric, own) in zip(grid[0], shown.items(), strict=True):
        for name, points in own.items():
            i = order.index(group_of[name])
            marker = turned(MARKERS, i) if len(points) < 30 else ""
            (line,) = axes.plot([x * scale for x, _ in points], [y for _, y in points], marker=marker, markersize=5)
            line.set(color=COLOURS[i % len(COLOURS)], linestyle=turned(DASHES, i))
            handles.setdefault(group_of[name], line)
        axes.set_xlabel(f"energy of the training [{unit}]")
        axes.set_ylabel(METRICS[metric])
        axes.grid(alpha=0.3)
    grid[0][0].set_xlim(left=0)
    listed = [name for name in order if name in handles]
    figure.legend([handles[n] for n in listed], listed, loc="outside upper center", ncol=columns(listed), frameon=False)
    save(figure, path, [])
