"""Checkpoints that can be trusted: sealed when they are whole, checked before they are resumed from."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from workflow_scripts.artefact import ArtefactError, flush, read_json, write_json

SEAL = "sealed.json"


def seal(folder: Path) -> None:
    """State what a finished checkpoint consists of, once that is on disk: the size [bytes] of every file."""
    flush(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    write_json(folder / SEAL, {str(path.relative_to(folder)): path.stat().st_size for path in files})


def newest(folder: Path) -> Path | None:
    """The whole checkpoint with the highest step number, or None; damaged ones are named and removed.

    They would count where old checkpoints make room for new ones, and the last whole one would go before the next is whole.
    """
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=step, reverse=True):
        fault = damage(checkpoint)
        if fault is None:
            return checkpoint
        print(f"{checkpoint.name} is not resumed from: {fault}; it was removed", flush=True)
        shutil.rmtree(checkpoint)
    return None


def step(checkpoint: Path) -> int:
    """The number of optimizer steps after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None.

    Sizes are compared with the seal, and the checksums inside PyTorch's zip files are verified; a changed byte in a
    safetensors file, which has none, is not seen.
    """
    try:
        sizes: dict[str, int] = read_json(checkpoint / SEAL)
    except ArtefactError:
        return "it was cut while it was written (no seal)"
    for name, size in sizes.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if bad := archive.testzip():
                    return f"{name} is damaged at {bad}"
    return None
