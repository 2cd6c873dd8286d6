"""The section `data`: the corpus."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from workflow_scripts.settings.section import Name, Section, Sha256, Text


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


class Data(Section):
    """The corpus that every pipeline starts from."""

    dataset_choice: Name = Field(description="Which entry of `datasets` is used.")
    datasets: dict[Name, DatasetSource] = Field(description="Known corpora by name.")
    max_sequence_length: int = Field(512, ge=8, description="Longer rows are cut and marked [tokens].")
    train_examples: int = Field(ge=1, description="Rows of the training split at most.")
    evaluation_examples: int = Field(ge=1, description="Held-out rows, never trained on.")
    seed: int = Field(0, ge=0, description="Seed of the split.")

    @model_validator(mode="after")
    def _choice_known(self) -> Data:
        if self.dataset_choice not in self.datasets:
            raise ValueError(f"dataset_choice = {self.dataset_choice!r} is not one of {sorted(self.datasets)}")
        return self
