"""Where models and corpora come from, and the base of all configuration sections."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from workflow_scripts.settings.shapes import Shape, resized

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Text = Annotated[str, StringConstraints(min_length=1)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Section(BaseModel):
    """Base of all sections: strict types, no unknown keys, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class PackagedModel(Section):
    """A GGUF model inside a Python package archive."""

    source: Literal["package"]
    package: Text = Field(description="Name of the package.")
    version: Text = Field(description="Exact version of the package.")
    archive_sha256: Sha256 = Field(description="SHA-256 of the downloaded archive.")
    member: Text = Field(description="Path of the .gguf file inside the archive.")
    member_sha256: Sha256 = Field(description="SHA-256 of that file.")


class PrunedModel(Section):
    """A depth-pruned copy of another model of the registry: some layers kept, no new weights."""

    source: Literal["pruned"]
    of: Name = Field(description="The model of the registry whose layers are kept.")
    keep_layers: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, description="Indices of the kept layers, ascending.")

    @model_validator(mode="after")
    def _ascending(self) -> PrunedModel:
        if list(self.keep_layers) != sorted(set(self.keep_layers)):
            raise ValueError("keep_layers must be ascending without repeats")
        return self


class FolderModel(Section):
    """A Hugging Face model folder on disk."""

    source: Literal["folder"]
    path: Text = Field(description="The folder with config.json, weights and tokenizer.")


class HubModel(Section):
    """A model of the Hugging Face hub, taken from the local cache when it is there."""

    source: Literal["hub"]
    repo_id: Text = Field(description="Hub id, such as allenai/OLMo-2-0425-1B.")
    revision: Text = Field("main", description="Branch, tag or commit.")


class RandomModel(Section):
    """An OLMo 2 of a known size with random weights and a real tokenizer: real speed, memory and energy, no quality."""

    source: Literal["random"]
    architecture: Literal["olmo2-10m", "olmo2-1b", "olmo2-7b", "olmo2-13b", "olmo2-32b"] = Field(
        description="Shape: that of the published models; `olmo2-10m` is for tests."
    )
    tokenizer: Text = Field(
        description="Whose tokenizer it gets: a model of the registry, a folder, or a hub id. The model's vocabulary stays "
        "larger by padding rows, which get no probability."
    )
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="Type of the weights on disk.")
    seed: int = Field(0, ge=0, description="Seed of the weights.")
    hidden_size: int | None = Field(None, ge=8, description="Another width than the architecture's.")
    intermediate_size: int | None = Field(None, ge=8, description="Another MLP width.")
    num_hidden_layers: int | None = Field(None, ge=1, description="Another depth.")
    num_attention_heads: int | None = Field(None, ge=1, description="Another number of heads.")
    num_key_value_heads: int | None = Field(None, ge=1, description="Another number of key and value heads.")
    vocab_size: int | None = Field(None, ge=8, description="Another number of embedding rows.")

    def shape(self) -> Shape:
        """The architecture's shape with this source's changes. Raises ValueError when heads do not divide."""
        names = (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "vocab_size",
        )
        return resized(self.architecture, {n: v for n in names if (v := getattr(self, n)) is not None})

    @model_validator(mode="after")
    def _shape_exists(self) -> RandomModel:
        self.shape()
        return self


ModelSource = Annotated[PackagedModel | PrunedModel | FolderModel | HubModel | RandomModel, Field(discriminator="source")]


class DatasetSource(Section):
    """One corpus: exactly one of dataset_name, dataset_path, package."""

    dataset_name: Text | None = Field(None, description="Hugging Face dataset id.")
    dataset_subset: Text | None = Field(None, description="Configuration name of the hub dataset.")
    dataset_split: Text = Field("train", description="Split of the hub dataset.")
    dataset_path: Text | None = Field(None, description="A `save_to_disk` folder, or a .json, .jsonl or .parquet file.")
    package: Text | None = Field(None, description="Python package whose source archive holds the data.")
    version: Text | None = Field(None, description="Exact version of that package.")
    archive_sha256: Sha256 | None = Field(None, description="SHA-256 of the archive.")
    member: Text | None = Field(None, description="Path of the .json file inside the archive.")
    member_sha256: Sha256 | None = Field(None, description="SHA-256 of that file.")
    format: Literal["messages", "instruction"] = Field(
        "messages", description="`messages`: chat rows. `instruction`: rows with instruction, input, output."
    )
    placeholders: dict[str, str] = Field({}, description="{{key}} in the text is replaced by the value.")

    @model_validator(mode="after")
    def _one_source(self) -> DatasetSource:
        given = [k for k in ("dataset_name", "dataset_path", "package") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of dataset_name, dataset_path, package must be set, not {given or 'none'}")
        packaged = [k for k in ("version", "archive_sha256", "member", "member_sha256") if getattr(self, k) is None]
        if given == ["package"] and packaged:
            raise ValueError(f"a package source also needs {', '.join(packaged)}")
        return self
