"""Sizes of models and corpora: from manifests, else from the settings of the jobs that will make them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from workflow_scripts.artefact import ArtefactError, read_json
from workflow_scripts.estimate.history import setting
from workflow_scripts.estimate.pricing import Range, UnpricedError
from workflow_scripts.pipelines import TRAININGS
from workflow_scripts.plan.dry_run import PlannedJob
from workflow_scripts.settings.models import FolderModel, HubModel, ModelSource, PackagedModel, PrunedModel, RandomModel
from workflow_scripts.settings.shapes import Shape, published_shape

# Where the corpus is not made yet: share of data.max_sequence_length that a row fills, and share of loss tokens in it.
FILLED = Range(0.1, 0.5, 1.0)
LOSS_SHARE = Range(0.2, 0.5, 0.9)
BESIDE_THE_CORPUS = ("", "logit_cache")  # teacher output with which the corpus's own answers are trained on, by its folder
ANSWERED = Range(0.2, 0.6, 1.0)  # share of max_new_tokens that an answer uses
PREPARE = "(`snakemake --until prepare_model` makes the models only)"
MODEL_SOURCE: TypeAdapter[ModelSource] = TypeAdapter(ModelSource)


@dataclass(frozen=True)
class Split:
    """One split of a corpus: rows, tokens of all of them, and the mean length of a prompt."""

    examples: float
    input_tokens: Range
    loss_tokens: Range
    prompt_tokens: Range


class Artefacts:
    """Sizes by the path of a manifest; the planned jobs say what is not made yet. Paths are relative to `folder`."""

    def __init__(self, jobs: Sequence[PlannedJob], folder: Path) -> None:
        self.folder = folder
        trainings = {job.experiment: job for job in jobs if job.stage in TRAININGS and job.experiment}
        makes = ("prepare_model", "preprocess", "rollout", *TRAININGS)
        self._makers = {Path(job.record).parents[1]: job for job in jobs if job.stage in makes}  # by what the manifest is under
        for job in jobs:  # a trained model may lie elsewhere than its record: its evaluation knows where
            if "model" in job.inputs and job.experiment in trainings:
                self._makers[Path(job.inputs["model"]).parents[1]] = trainings[job.experiment]

    def facts(self, manifest: str) -> dict[str, Any] | None:
        """Content of a manifest; None when it is not there. Raises UnpricedError when it is damaged."""
        try:
            return read_json(self.folder / manifest) if (self.folder / manifest).is_file() else None
        except (ArtefactError, OSError, UnicodeDecodeError) as error:
            raise UnpricedError(str(error)) from None

    def parameters(self, model: str) -> float:
        """Parameters of a model. Raises UnpricedError when neither a manifest nor a local config.json tells."""
        job = self._makers.get(Path(model).parents[1])
        if job is not None and job.stage in TRAININGS:
            return self.parameters(job.inputs.get("student") or job.inputs["policy"])
        if job is not None:
            return self._prepared(model, job)
        facts = self.facts(model)
        if facts is None or "parameters" not in facts:
            raise UnpricedError(
                f"the parameters of its model are not known: {model} does not exist and no planned job makes it"
            )
        return float(facts["parameters"])

    def split(self, corpus: str, name: str) -> Split:
        """One split (train, evaluation) of a corpus. Raises UnpricedError when nothing tells of it."""
        facts, job = self.facts(corpus), self._makers.get(Path(corpus).parents[1])
        if facts is not None:
            counts = facts["splits"][name]
            read, loss, rows = (float(counts[key]) for key in ("input_tokens", "loss_tokens", "examples"))
            return Split(rows, Range.exactly(read), Range.exactly(loss), Range.exactly((read - loss) / max(rows, 1.0)))
        if job is None:
            raise UnpricedError(f"the size of its corpus is not known: {corpus} does not exist and no planned job makes it")
        if job.stage == "rollout":
            return self._written(job, name)
        rows, length = (float(setting(job.settings, f"data.{key}")) for key in (f"{name}_examples", "max_sequence_length"))
        prompt = Range(1 - LOSS_SHARE.high, 1 - LOSS_SHARE.mid, 1.0)
        return Split(rows, FILLED * (rows * length), FILLED * LOSS_SHARE * (rows * length), FILLED * prompt * length)

    def _written(self, job: PlannedJob, name: str) -> Split:
        """A split of what a student will write; the held-out one is that of the corpus that it is asked from."""
        asked = self.split(job.inputs["corpus"], name)
        if name != "train":
            return asked
        rows = min(asked.examples, float(setting(job.settings, "opd.prompts_per_round")))
        loss = ANSWERED * (rows * float(setting(job.settings, "opd.generation.max_new_tokens")))
        return Split(rows, asked.prompt_tokens * rows + loss, loss, asked.prompt_tokens)

    def epoch(self, inputs: Mapping[str, str]) -> tuple[Range | None, Range | None]:
        """Loss tokens of one pass over what a training reads, and its input tokens per loss token; None where not known."""
        if data_kind(inputs) in BESIDE_THE_CORPUS:
            train = self.split(inputs["corpus"], "train")
            exact = train.input_tokens.low == train.input_tokens.high
            return train.loss_tokens, Range.exactly(train.input_tokens.mid / train.loss_tokens.mid) if exact else None
        facts = self.facts(inputs.get("teacher_output") or inputs["preferences"])
        return (Range.exactly(float(facts["loss_tokens"])) if facts and "loss_tokens" in facts else None), None

    def _prepared(self, manifest: str, job: PlannedJob) -> float:
        """Parameters of a model that prepare_model will make (again)."""
        ((name, described),) = job.settings["models"].items()
        source = MODEL_SOURCE.validate_python(described)
        if isinstance(source, PrunedModel):
            folder, layers = self._folder_of(job.inputs["parent"]), len(source.keep_layers)
            name += f", which is pruned from {job.inputs['parent']},"
        else:
            folder, layers = local_folder(source), None
        if folder is not None:
            return float(count_parameters(folder, layers))
        if (shape := known_shape(source)) is not None:
            return float(shape.parameters())
        facts = self.facts(manifest)  # a package names exact weights, so what was made of it before holds
        if facts is None or not isinstance(source, PackagedModel):
            raise UnpricedError(f"the parameters of {name} are not known before it is prepared {PREPARE}")
        return float(facts["parameters"])

    def _folder_of(self, manifest: str) -> Path | None:
        """Folder with the config.json of a model, where there is one already."""
        job, facts = self._makers.get(Path(manifest).parents[1]), self.facts(manifest)
        sources = job.settings["models"].values() if job else ()
        folders = [local_folder(MODEL_SOURCE.validate_python(source)) for source in sources]
        folders += [(self.folder / manifest).parent / facts["path"]] if facts else []
        return next((folder for folder in folders if folder and (folder / "config.json").is_file()), None)


def data_kind(inputs: Mapping[str, str]) -> str:
    """What the teacher made for a training, by the folder of its manifest; empty where it made nothing."""
    return Path(inputs.get("teacher_output") or inputs.get("preferences") or "").parent.name


def count_parameters(folder: Path, layers: int | None = None) -> int:
    """Parameters of the model that a config.json describes, with `layers` layers; no weights are read.

    Raises UnpricedError for an architecture that transformers does not know.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if layers is not None:
            config.num_hidden_layers = layers
            if getattr(config, "layer_types", None):
                config.layer_types = config.layer_types[:layers]
        with torch.device("meta"):
            return int(AutoModelForCausalLM.from_config(config).num_parameters())
    except (OSError, ValueError) as error:
        raise UnpricedError(f"{folder}/config.json: {' '.join(str(error).split())[:200]}") from error


def known_shape(source: ModelSource) -> Shape | None:
    """Shape of a random model, or of a published one by its hub id or folder name; else None."""
    if isinstance(source, RandomModel):
        return source.shape()
    name = source.repo_id if isinstance(source, HubModel) else source.path if isinstance(source, FolderModel) else None
    return published_shape(name) if name else None


def local_folder(source: ModelSource) -> Path | None:
    """Folder with the config.json of a model that is a folder or in the local Hugging Face cache."""
    if isinstance(source, FolderModel):
        folder = Path(source.path).expanduser()
        return folder if (folder / "config.json").is_file() else None
    if isinstance(source, HubModel):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(source.repo_id, "config.json", revision=source.revision)
        return Path(os.fspath(found)).parent if isinstance(found, str) else None
    return None
