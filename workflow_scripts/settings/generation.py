"""How a model writes text: a part of `synthetic_data`, `dpo` and `opd`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workflow_scripts.settings.section import Section


class Generation(Section):
    """How a model writes text: the teacher in synthetic_data and dpo, the student in opd."""

    backend: Literal["auto", "transformers", "vllm"] = Field(
        "transformers",
        description="Who generates. vllm is an optional extra that must be installed; give it a large batch_size (512, say), "
        "which is then the unit of resumption only. auto: vllm on a GPU where it is installed, else transformers.",
    )
    decoding_strategy: Literal["sampling", "greedy"] = Field("sampling", description="Sampling or greedy decoding.")
    temperature: float = Field(0.7, gt=0, le=10, description="Softmax temperature of sampling.")
    top_p: float = Field(0.9, gt=0, le=1, description="Nucleus mass of sampling.")
    max_new_tokens: int = Field(ge=1, description="Longest answer [tokens].")
    batch_size: int = Field(32, ge=1, description="Prompts per batch; halved by itself when memory runs out.")
    seed: int = Field(0, ge=0, description="Seed; each prompt derives its own from it.")
