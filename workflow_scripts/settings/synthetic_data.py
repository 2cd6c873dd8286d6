"""The section `synthetic_data`: teacher-written answers."""

from __future__ import annotations

import re

from pydantic import Field, model_validator

from workflow_scripts.settings.generation import Generation
from workflow_scripts.settings.section import Section, Text


class Filtering(Section):
    """Which generated answers are dropped (counted by reason)."""

    enabled: bool = Field(True, description="False keeps every non-empty answer.")
    min_length: int = Field(1, ge=0, description="Shorter answers are dropped [tokens].")
    max_length: int = Field(4096, ge=1, description="Longer answers are dropped [tokens].")
    keep_truncated: bool = Field(False, description="Keep answers that hit max_new_tokens without an end token.")
    refusal_pattern: str | None = Field(None, description="Regular expression of refusals to drop.")

    @model_validator(mode="after")
    def _something_can_pass(self) -> Filtering:
        if self.min_length > self.max_length:
            raise ValueError(f"min_length = {self.min_length} is above max_length = {self.max_length}: no answer would be kept")
        try:
            re.compile(self.refusal_pattern or "")
        except re.error as error:
            raise ValueError(f"refusal_pattern = {self.refusal_pattern!r} is no regular expression: {error}") from None
        return self


class SyntheticData(Section):
    """Teacher-written answers for SFT."""

    max_gen_examples: int = Field(ge=1, description="Training prompts that the teacher answers.")
    generation: Generation
    filtering: Filtering = Filtering()
    synthetic_dataset_path: Text | None = Field(None, description="Folder of the dataset. Null: beside the manifest.")
    use_existing: bool = Field(
        False, description="Use the dataset already at synthetic_dataset_path; its energy is read from its record."
    )

    @model_validator(mode="after")
    def _existing_needs_path(self) -> SyntheticData:
        if self.use_existing and self.synthetic_dataset_path is None:
            raise ValueError("use_existing = true needs synthetic_dataset_path")
        longest = self.generation.max_new_tokens
        if self.filtering.enabled and self.filtering.min_length > longest:
            raise ValueError(
                f"filtering.min_length = {self.filtering.min_length} is above generation.max_new_tokens = {longest}: no answer "
                "would be kept"
            )
        return self
