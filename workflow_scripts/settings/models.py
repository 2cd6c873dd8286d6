"""The section `models`: where models come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from workflow_scripts.settings.section import Name, Section, Sha256, Text
from workflow_scripts.settings.shapes import Shape, resized


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
        sizes = {name: getattr(self, name, None) for name in Shape.__dataclass_fields__}
        return resized(self.architecture, {name: size for name, size in sizes.items() if size is not None})

    @model_validator(mode="after")
    def _shape_exists(self) -> RandomModel:
        self.shape()
        return self


ModelSource = Annotated[PackagedModel | PrunedModel | FolderModel | HubModel | RandomModel, Field(discriminator="source")]
