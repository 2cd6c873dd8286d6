"""The section `data`: the corpus."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from workflow_scripts.settings.section import Name, Section, Sha256, Text


class DatasetSource(Section):
    """One corpus: exactly one of dataset_name, dataset_path, package."""

    dataset_name: Text | None = Field(None, description="Hugging Face dataset id.")
    dataset_subset: Text | None = Field(None, description="Configuration name of the hub dataset.")
    dataset_split: Text = Field("train", description="Split of the hub dataset, or of a folder whose shards name theirs.")
    dataset_revision: Text | None = Field(None, description="Branch, tag or commit of the hub dataset. Null: the newest.")
    dataset_path: Text | list[Text] | None = Field(
        None,
        description="A .jsonl, .json or .parquet file (the first two also .gz), a folder of such shards, a `save_to_disk` "
        "folder, or a list of them.",
    )
    package: Text | None = Field(None, description="Python package whose source archive holds the data.")
    version: Text | None = Field(None, description="Exact version of that package.")
    archive_sha256: Sha256 | None = Field(None, description="SHA-256 of the archive.")
    member: Text | None = Field(None, description="Path of the .json file inside the archive.")
    member_sha256: Sha256 | None = Field(None, description="SHA-256 of that file.")
    format: Literal["auto", "messages", "conversations", "prompt", "instruction"] = Field(
        "auto",
        description="`messages`: turns with role and content. `conversations`: with from and value. `prompt`: prompt and "
        "completion, response or chosen. `instruction`: instruction, input, output. `auto`: the first whose fields a row has.",
    )
    placeholders: dict[str, str] = Field({}, description="{{key}} in the text is replaced by the value.")

    def paths(self) -> list[str]:
        """What dataset_path names."""
        return [self.dataset_path] if isinstance(self.dataset_path, str) else self.dataset_path or []

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
    max_dropped_share: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Share of rows that may be unusable; more are refused. Rows without an answer within max_sequence_length "
        "are counted, but not here.",
    )

    @model_validator(mode="after")
    def _choice_known(self) -> Data:
        if self.dataset_choice not in self.datasets:
            raise ValueError(f"dataset_choice = {self.dataset_choice!r} is not one of {sorted(self.datasets)}")
        return self
