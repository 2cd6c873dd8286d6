"""Figures as SVG, readable in grey: colours of one palette made for colour-blind readers, with hatching."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("MPLCONFIGDIR", tempfile.gettempdir())

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.patches import Patch

# Okabe & Ito 2008
_STYLE = {
    "prerun": ("#999999", ""),
    "data": ("#56B4E9", "//"),
    "teacher": ("#E69F00", ".."),
    "student": ("#0072B2", ""),
    "evaluation": ("#CC79A7", "\\\\"),
}
_QUALITY = {
    "cross_entropy": "held-out cross entropy [nats/token], lower is better",
    "kl_to_teacher": "KL to the teacher [nats/token], lower is better",
    "top1_agreement": "top-1 agreement with the teacher, higher is better",
}


def energy_by_stage(summaries: list[dict[str, Any]], path: Path) -> None:
    """Stacked bars: kWh of each experiment by role; a role without a figure is named under the bar's label."""
    figure, axes = plt.subplots(figsize=(8, 1.4 + 0.6 * len(summaries)), layout="constrained")
    names = []
    for row, summary in enumerate(summaries):
        left, unknown = 0.0, []
        for role, (colour, hatch) in _STYLE.items():
            entry = summary["roles"][role]
            if entry["kwh"] is None:
                unknown += [role] if entry["stages"] else []
                continue
            axes.barh(row, entry["kwh"] * 1000, left=left, color=colour, hatch=hatch, edgecolor="white")
            left += entry["kwh"] * 1000
        if summary["energy"]["uncertainty_j"] is None:
            names.append(f"{summary['experiment_name']}\nno figure: {', '.join(unknown)}")
            continue
        spread = summary["energy"]["uncertainty_j"] / 3600
        axes.errorbar(left, row, xerr=spread, color="black", capsize=4, linewidth=1)
        axes.text(left + spread, row, f"  {left:.3g} ± {spread:.2g} Wh", va="center", fontsize=9)
        names.append(summary["experiment_name"])
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.16)
    classes = sorted({s["energy"]["class"] for s in summaries})
    axes.set_xlabel(f"energy at the IT boundary [Wh], {'/'.join(classes)}")
    keys = [Patch(facecolor=c, hatch=h, edgecolor="white", label=role) for role, (c, h) in _STYLE.items()]
    axes.legend(handles=keys, loc="upper center", bbox_to_anchor=(0.5, -0.25), ncol=5, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def energy_quality(table: pd.DataFrame, quality: str, front: set[str], path: Path) -> None:
    """Energy against quality; the points of the Pareto front are filled."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for row in table.to_dict("records"):
        name, wh = row["experiment"], row["total_with_lineage_kwh"] * 1000
        if pd.isna(wh):
            continue
        fill = "#0072B2" if name in front else "white"
        spread = row["total_uncertainty_kwh"] * 1000
        axes.errorbar(wh, row[quality], xerr=spread, color="#0072B2", alpha=0.4, capsize=4, zorder=2)
        axes.scatter(wh, row[quality], s=60, edgecolor="#0072B2", color=fill, zorder=3)
        axes.annotate(name, (wh, row[quality]), xytext=(7, 5), textcoords="offset points")
    axes.margins(x=0.2, y=0.15)
    axes.set_xlabel("total energy of the experiment, its starting policy's included [Wh]")
    axes.set_ylabel(_QUALITY[quality])
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("filled: Pareto front", fontsize=9, loc="right")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
