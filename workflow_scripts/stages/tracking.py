"""What trainings leave beside the model: W&B run, link to the checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

from workflow_scripts.progress import state_dir
from workflow_scripts.settings.slices import WandbSlice


def start_tracking(settings: str) -> tuple[str, int]:
    """Set up W&B from the `--wandb` JSON. Returns the Trainer's `report_to` and the steps between log lines.

    Mode `auto` is online when a key is in the environment, offline otherwise. The key itself is never read here.
    """
    if not settings:
        return "none", 10
    choice = WandbSlice.model_validate_json(settings)
    wandb = choice.wandb
    if not wandb.enabled:
        return "none", wandb.log_interval
    mode = wandb.mode if wandb.mode != "auto" else ("online" if os.environ.get("WANDB_API_KEY") else "offline")
    os.environ.update(
        WANDB_MODE=mode,
        WANDB_PROJECT=wandb.project,
        WANDB_NAME=wandb.run_name or choice.experiment,
        WANDB_DIR=str(state_dir()),
        WANDB_RUN_ID=f"{choice.experiment}-{state_dir().name}",
        WANDB_RESUME="allow",
        WANDB_SILENT="true",
    )
    if wandb.entity:
        os.environ["WANDB_ENTITY"] = wandb.entity
    return "wandb", wandb.log_interval


def link_checkpoints(out: Path) -> Path:
    """Folder of the checkpoints in the state folder, with `<output_dir>/checkpoints` linking to it."""
    folder = state_dir() / "checkpoints"
    folder.mkdir(exist_ok=True)
    link = out.parent.parent / "checkpoints"
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".checkpoints.{os.getpid()}")
    temporary.symlink_to(os.path.relpath(folder, link.parent))
    temporary.replace(link)
    return folder
