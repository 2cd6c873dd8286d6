"""wandb_summary: final energies and qualities of an experiment, from its summary, into the W&B run of its training.

python -m workflow_scripts.stages.wandb_summary --summary FILE --wandb JSON --config JSON --out FILE

`--out` gets {"id", "mode", "folder", "error", "figures"}: what was logged, where. A run that was given up is no failure; a
warning says how to log it again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from workflow_scripts.accounting.model import ExperimentSummary, SummaryStage
from workflow_scripts.artefact import ArtefactError, write_json
from workflow_scripts.stages.runtime.wandb_run import Run, WandbChoice, energy_metrics, logged_name, run_id

QUALITIES = (
    *("cross_entropy", "bits_per_byte", "perplexity", "kl_to_teacher", "top1_agreement"),
    *("mean_margin", "accuracy", "tokens_per_second"),
)


def main(arguments: list[str] | None = None) -> int:
    """Log the figures and write the note."""
    parser = argparse.ArgumentParser(prog="workflow_scripts.stages.wandb_summary", allow_abbrev=False)
    for name in ("summary", "wandb", "config", "out"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args(arguments)
    choice = WandbChoice.model_validate_json(options.wandb)
    try:
        summary = ExperimentSummary.read(Path(options.summary))
    except ArtefactError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    logged = figures(summary)
    run = Run(choice, run_id(choice.experiment, own_training(summary).provenance.fingerprint or ""), {})
    run.conclude(logged, json.loads(options.config))
    run.finish()
    note = {
        "id": run.ident,
        "mode": run.mode,
        "folder": f"{choice.folder}/wandb",
        "error": run.error or None,
        "figures": logged,
    }
    write_json(Path(options.out), note)
    if run.error:
        print(f"warning: the final figures are not in W&B run {run.ident}: delete {options.out} and run again", file=sys.stderr)
    return 0


def own_training(summary: ExperimentSummary) -> SummaryStage:
    """The record of the experiment's own training."""
    return summary.training or summary.of("student")[0]


def figures(summary: ExperimentSummary) -> dict[str, float]:
    """What a finished experiment is listed with: joules and kWh by stage, by role and in total, J per token, and quality.

    What is not known is left out. `energy/<stage>/…` continues what the training has logged while it ran; the training's last
    metrics are said again, because a synced piece of a run replaces the list of the pieces before. Of those only numbers are:
    not what ended it, not the list of its evaluations.
    """
    said = own_training(summary).metrics.model_dump()
    found: dict[str, Any] = {logged_name(key): value for key, value in said.items() if _is_number(value)}
    for name, stage in summary.own.items():
        if stage.spent is not None:
            found |= energy_metrics(name, stage.spent.value)
            found |= {
                f"{key}/{name}": getattr(stage, key) for key in ("joules_per_token", "tokens_per_second", "duration_seconds")
            }
    found |= {f"energy/role/{role}/kwh": entry.kwh for role, entry in summary.roles.items()}
    found |= {f"energy/{key}": getattr(summary.energy, key) for key in ("uncertainty_j", "uncertainty_pct")}
    found |= {"energy/total/kwh": summary.total_energy_kwh, "energy/total/joules": summary.total_energy_joules}
    if "model" in summary.deployment:
        found["energy/generated_joules_per_token"] = summary.deployment["model"].joules_per_token
    quality = summary.quality
    parts = {"quality": quality, "quality/preference": quality.preference, "quality/generation": quality.generation}
    for prefix, entry in parts.items():
        found |= {f"{prefix}/{key}": value for key in QUALITIES if (value := getattr(entry, key, None)) is not None}
    found |= {f"quality/{name}": entry.value for name, entry in quality.metrics.items()}
    return {key: float(value) for key, value in found.items() if value is not None}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


if __name__ == "__main__":
    sys.exit(main())
