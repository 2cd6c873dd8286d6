"""How the teacher writes, and what of it is kept."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workflow_scripts.settings.sources import Section


class Generation(Section):
    """How the teacher writes text."""

    backend: Literal["transformers", "vllm"] = Field(
        "transformers",
        description="Who generates. vllm is an optional extra that must be installed; give it a large batch_size (512, say), "
        "which is then the unit of resumption only.",
    )
    decoding_strategy: Literal["sampling", "greedy"] = Field("sampling", description="Sampling or greedy decoding.")
    temperature: float = Field(0.7, gt=0, le=10, description="Softmax temperature of sampling.")
    top_p: float = Field(0.9, gt=0, le=1, description="Nucleus mass of sampling.")
    max_new_tokens: int = Field(ge=1, description="Longest answer [tokens].")
    batch_size: int = Field(32, ge=1, description="Prompts per batch; halved by itself when memory runs out.")
    seed: int = Field(0, ge=0, description="Seed; each prompt derives its own from it.")


class Filtering(Section):
    """Which generated answers are dropped (counted by reason)."""

    enabled: bool = Field(True, description="False keeps every non-empty answer.")
    min_length: int = Field(1, ge=0, description="Shorter answers are dropped [tokens].")
    max_length: int = Field(4096, ge=1, description="Longer answers are dropped [tokens].")
    keep_truncated: bool = Field(False, description="Keep answers that hit max_new_tokens without an end token.")
    refusal_pattern: str | None = Field(None, description="Regular expression of refusals to drop.")
