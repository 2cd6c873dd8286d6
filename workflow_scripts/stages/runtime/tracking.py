"""What trainings leave beside the model: W&B run, link to the checkpoints."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from workflow_scripts.progress import state_dir
from workflow_scripts.stages.runtime.wandb_run import Run, WandbChoice, run_id


def start_tracking(settings: str, config: dict[str, Any]) -> tuple[Run, int]:
    """The W&B run of the training that this process is, from the `--wandb` JSON, and optimizer steps between log lines.

    `config` is shown with the run. Without W&B, and in all but the first of several processes, nothing is logged.
    """
    choice = WandbChoice.model_validate_json(settings) if settings else WandbChoice.nothing()
    if os.environ.get("RANK", "0") != "0":
        choice = WandbChoice.nothing(choice.wandb.log_interval)
    return Run(choice, run_id(choice.experiment, state_dir().name), config), choice.wandb.log_interval


def clear_checkpoints(folder: Path, keep: bool) -> None:
    """The model is written: what it could have been resumed from goes, unless it is kept."""
    for checkpoint in [] if keep else list(folder.glob("checkpoint-*")):
        shutil.rmtree(checkpoint)


def link_checkpoints(out: Path) -> Path:
    """Folder of the checkpoints in the state folder, with `<output_dir>/checkpoints` linking to it."""
    folder = state_dir() / "checkpoints"
    folder.mkdir(exist_ok=True)
    link = out.parent.parent / "checkpoints"
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".checkpoints.{os.getpid()}")
    temporary.symlink_to(os.path.relpath(folder.resolve(), link.parent.resolve()))
    temporary.replace(link)
    return folder
