"""What the forecast knows of models and corpora: from manifests, else from the settings of the jobs that will make them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow_scripts.artefact import read_json
from workflow_scripts.estimate.pricing import Range
from workflow_scripts.plan.dry_run import PlannedJob
from workflow_scripts.settings.models import RandomModel
from workflow_scripts.settings.shapes import published_shape

# Where the corpus is not made yet: share of data.max_sequence_length that a row fills, and share of loss tokens in it.
FILLED = Range(0.1, 0.5, 1.0)
LOSS_SHARE = Range(0.2, 0.5, 0.9)
PREPARE = "(`snakemake --until prepare_model` makes the models only)"


class UnpricedError(ValueError):
    """A stage that cannot be priced; the message is the reason."""


@dataclass(frozen=True)
class Split:
    """One split of a corpus: rows, and tokens of all of them."""

    examples: float
    input_tokens: Range
    loss_tokens: Range

    def prompt_tokens(self) -> Range:
        """Mean length of a prompt [tokens]."""
        mid = (self.input_tokens.mid - self.loss_tokens.mid) / self.examples
        if self.input_tokens.low == self.input_tokens.high:
            return Range.exactly(mid)
        return Range((1 - LOSS_SHARE.high) * self.input_tokens.low / self.examples, mid, self.input_tokens.high / self.examples)


class Artefacts:
    """Facts of artefacts by the path of their manifest; the planned jobs say what is not made yet."""

    def __init__(self, jobs: Iterable[PlannedJob]) -> None:
        self._makers = {job.stage["out"][0]: job for job in jobs if "out" in job.stage}

    def is_planned(self, manifest: str) -> bool:
        """Whether a planned job makes the artefact (again)."""
        return manifest in self._makers

    def facts(self, manifest: str) -> dict[str, Any] | None:
        """Content of a manifest; None when it is not there."""
        path = Path(manifest)
        return read_json(path) if path.is_file() else None

    def parameters(self, manifest: str) -> float:
        """Parameters of a model. Raises UnpricedError when neither a manifest nor a local config.json tells."""
        job = self._makers.get(manifest)
        if job is not None:
            start = job.stage.get("student") or job.stage.get("policy")
            return self.parameters(start[0]) if start else self._planned_model(manifest, job)
        facts = self.facts(manifest)
        if facts is None or "parameters" not in facts:
            raise UnpricedError(
                f"the parameters of its model are not known: {manifest} does not exist and no planned job makes it"
            )
        return float(facts["parameters"])

    def split(self, manifest: str, name: str) -> Split:
        """One split (train, evaluation) of a corpus. Raises UnpricedError when nothing tells of it."""
        facts = self.facts(manifest)
        if facts is not None:
            counts = facts["splits"][name]
            tokens = (Range.exactly(float(counts[key])) for key in ("input_tokens", "loss_tokens"))
            return Split(counts["examples"], *tokens)
        job = self._makers.get(manifest)
        if job is None:
            raise UnpricedError(f"the size of its corpus is not known: {manifest} does not exist and no planned job makes it")
        rows = job.settings[f"{name}_examples"]
        tokens_in = FILLED * float(rows * job.settings["max_sequence_length"])
        return Split(rows, tokens_in, tokens_in * LOSS_SHARE)

    def _planned_model(self, manifest: str, job: PlannedJob) -> float:
        source = job.settings["source"]
        if source["source"] == "pruned":
            return self._pruned(job.stage["parent"][0], len(source["keep_layers"]))
        folder = _local_folder(source)
        if folder is not None:
            return float(count_parameters(folder))
        if source["source"] == "random":
            return float(RandomModel.model_validate(source).shape().parameters())
        published = published_shape(source["repo_id"]) if source["source"] == "hub" else None
        if published is not None:
            return float(published.parameters())
        facts = self.facts(manifest)  # a package names exact weights, so what was made of it before holds
        if facts is None or source["source"] != "package":
            raise UnpricedError(f"the parameters of {job.settings['name']} are not known before it is prepared {PREPARE}")
        return float(facts["parameters"])

    def _pruned(self, parent: str, layers: int) -> float:
        maker = self._makers.get(parent)
        facts = self.facts(parent)
        folder = _local_folder(maker.settings["source"]) if maker else None
        if folder is None and facts is not None:
            folder = Path(parent).parent / facts["path"]
        if folder is None or not (folder / "config.json").is_file():
            raise UnpricedError(
                f"the parameters of a pruned model are not known before its parent {parent} is prepared {PREPARE}"
            )
        return float(count_parameters(folder, layers))


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


def _local_folder(source: dict[str, Any]) -> Path | None:
    """Folder with the config.json of a model that is a folder or in the local Hugging Face cache."""
    if source["source"] == "folder":
        folder = Path(source["path"]).expanduser()
        return folder if (folder / "config.json").is_file() else None
    if source["source"] == "hub":
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(source["repo_id"], "config.json", revision=source["revision"])
        return Path(os.fspath(found)).parent if isinstance(found, str) else None
    return None
