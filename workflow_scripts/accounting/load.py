"""Summaries for the comparison: what cannot be read is named and left out, what is odd is named and kept.

Every summary gets three keys more: `problems`, why it has no total, `partial`, why its total is a lower bound, and `path`,
where it was read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workflow_scripts.artefact import RANDOM_WEIGHTS, ArtefactError, read_json

SCHEMA = "experiment-summary/1"
NEEDED = ("experiment_name", "pipeline", "roles", "stages", "energy")
TRAINING = {"dpo": "dpo_training"}
TEACHER = {"kd": ("logit_caching",), "sft": ("teacher_generation",), "dpo": ("teacher_generation",)}


@dataclass
class Loaded:
    """Summaries that could be read, by unique `experiment_name`; `skipped` says path and reason of the others."""

    summaries: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def load(paths: Sequence[Path]) -> Loaded:
    """Read summaries; a file named twice counts once, two files of one experiment name get different names."""
    loaded = Loaded()
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            loaded.warnings.append(f"{path} was named twice: it counts once")
            continue
        seen.add(path.resolve())
        try:
            content = read_json(path)
        except (ArtefactError, OSError, UnicodeDecodeError) as error:
            loaded.skipped.append({"path": str(path), "reason": str(error)})
            continue
        if reason := unusable(content):
            loaded.skipped.append({"path": str(path), "reason": reason})
            continue
        _add(loaded, content, path)
    loaded.warnings += [f"left out: {entry['reason']} ({entry['path']})" for entry in loaded.skipped]
    return loaded


def unusable(content: Any) -> str | None:
    """Why this is no summary, or None."""
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else type(content).__name__
        return f"schema {found!r}, this program reads {SCHEMA}"
    missing = [key for key in NEEDED if not content.get(key)]
    if missing:
        return f"key {missing[0]!r} is missing: make the summary again"
    mappings = [key for key in ("roles", "stages", "energy") if not isinstance(content[key], dict)]
    return f"{mappings[0]!r} is no mapping: make the summary again" if mappings else None


def _add(loaded: Loaded, content: dict[str, Any], path: Path) -> None:
    name = content["experiment_name"]
    taken = {s["experiment_name"] for s in loaded.summaries}
    if name in taken:
        number = next(n for n in range(2, len(taken) + 3) if f"{name}#{n}" not in taken)
        loaded.warnings.append(f"two summaries are named {name}: that of {path} is called {name}#{number} here")
        name = f"{name}#{number}"
    stages = {stage: r for stage, r in content["stages"].items() if _is_record(r)}
    summary = content | {"experiment_name": name, "stages": stages, "path": str(path)}
    problems = [f"stage {stage} is no stage record" for stage in content["stages"] if stage not in stages]
    problems += missing_stages(summary) + _bad_figures(summary)
    unfinished = {stage: r["status"] for stage, r in stages.items() if r.get("status", "complete") != "complete"}
    partial = [f"stage {stage} is {status}: its energy is a lower bound" for stage, status in unfinished.items()]
    loaded.summaries.append(summary | {"problems": problems, "partial": partial})
    random = [RANDOM_WEIGHTS] if RANDOM_WEIGHTS in (content.get("warnings") or []) else []
    loaded.warnings += [f"{name}: {text}" for text in (*random, *problems, *partial)]


def _is_record(record: Any) -> bool:
    return isinstance(record, dict) and isinstance((record.get("energy") or {}).get("total"), dict) and "role" in record


def missing_stages(summary: dict[str, Any]) -> list[str]:
    """Stages without which an experiment of this pipeline has no teacher or student cost."""
    pipeline = summary["pipeline"]
    wanted = (*TEACHER.get(pipeline, ()), training_stage(summary))
    own = {stage for stage, r in summary["stages"].items() if "lineage" not in r}
    return [f"stage {stage} is missing, so it has no total" for stage in wanted if stage not in own]


def _bad_figures(summary: dict[str, Any]) -> list[str]:
    """Energies that no meter gives; such a stage counts as unknown."""
    found = []
    for stage, record in summary["stages"].items():
        joules = record.get("total_energy_joules")
        if joules is not None and not (isinstance(joules, int | float) and math.isfinite(joules) and joules >= 0):
            found.append(f"stage {stage}: total_energy_joules = {joules!r} is no energy")
            summary["stages"][stage] = record | {"total_energy_joules": None}
    return found


def training_stage(summary: dict[str, Any]) -> str:
    """Name of the experiment's own training."""
    return TRAINING.get(summary["pipeline"], "student_train")
