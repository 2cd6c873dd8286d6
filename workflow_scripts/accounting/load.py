"""Summaries for the comparison: what cannot be read is named and left out, what is odd is named and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workflow_scripts.accounting.model import ExperimentSummary
from workflow_scripts.artefact import RANDOM_WEIGHTS, ArtefactError


@dataclass
class Loaded:
    """Summaries that could be read, by unique `experiment_name`; `skipped` says path and reason of the others."""

    summaries: list[ExperimentSummary] = field(default_factory=list)
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
            summary = ExperimentSummary.read(path)
        except (ArtefactError, OSError, UnicodeDecodeError) as error:
            loaded.skipped.append({"path": str(path), "reason": str(error)})
            continue
        taken = {s.experiment_name for s in loaded.summaries}
        if (name := summary.experiment_name) in taken:
            other = next(new for n in range(2, len(taken) + 3) if (new := f"{name}#{n}") not in taken)
            loaded.warnings.append(f"two summaries are named {name}: that of {path} is called {other} here")
            summary = summary.model_copy(update={"experiment_name": other})
        loaded.summaries.append(summary)
        odd = [*([RANDOM_WEIGHTS] if summary.random_weights else []), *(p.text for p in summary.problems), *summary.partial]
        loaded.warnings += [f"{summary.experiment_name}: {text}" for text in odd]
    loaded.warnings += [f"left out: {entry['reason']} ({entry['path']})" for entry in loaded.skipped]
    return loaded
