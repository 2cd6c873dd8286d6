"""The section `distillation`: cached teacher logits and the loss on them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from workflow_scripts.settings.section import Section, Text

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]
DIVERGENCES = "KL(teacher || student), KL(student || teacher), or the generalised Jensen-Shannon divergence."


class Distillation(Section):
    """Knowledge distillation on cached teacher logits."""

    alpha: float = Field(0.5, ge=0, le=1, description="Weight of cross entropy; 1 - alpha weighs the KL term.")
    temperature: float = Field(1.0, gt=0, le=20, description="Softmax temperature T of the KL term.")
    divergence: Divergence = Field("forward_kl", description=DIVERGENCES)
    beta: float = Field(0.5, gt=0, lt=1, description="divergence jsd: weight of the teacher in the mixture.")
    cache_temperatures: list[Annotated[float, Field(gt=0, le=20)]] = Field(
        [1.0], description="Temperatures the cache is made for; `temperature` must be one of them."
    )
    sampling: Literal["top_k", "random"] = Field(
        "top_k",
        description="What the cache keeps per position: the top k logits, or tokens drawn from the teacher's distribution at "
        "each cache temperature (unbiased gradient, about 40 bytes).",
    )
    top_k_logits: int = Field(64, ge=1, description="sampling top_k: teacher logits kept per position.")
    tail: Literal["ghost", "renormalise", "zero"] = Field(
        "ghost", description="sampling top_k: mass outside the top k: one extra bucket, spread over the k, or ignored."
    )
    sampling_draws: int = Field(50, ge=1, le=4096, description="sampling random: draws per position.")
    sampling_seed: int = Field(0, ge=0, description="sampling random: seed; each example derives its own from it.")
    shard_examples: int = Field(64, ge=1, description="Examples per cache shard (the unit of resumption).")
    batch_size: int = Field(8, ge=1, description="Rows per teacher forward pass.")
    logprob_cache_path: Text | None = Field(
        None, description="Folder for the shards, as <path>/teacher_logprobs. Null: beside the manifest."
    )

    @field_validator("cache_temperatures")
    @classmethod
    def _ascending(cls, temperatures: list[float]) -> list[float]:
        return sorted(set(temperatures))

    @model_validator(mode="after")
    def _cached_temperature(self) -> Distillation:
        if self.temperature not in self.cache_temperatures:
            raise ValueError(
                f"temperature = {self.temperature}, but cache_temperatures = {self.cache_temperatures}: "
                "add it there (the cache is rebuilt) or choose one of these"
            )
        return self

    @model_validator(mode="after")
    def _whole_distribution(self) -> Distillation:
        if self.divergence != "forward_kl":
            needs_buckets(self, f"divergence = {self.divergence!r}")
        return self


def needs_buckets(options: Distillation, what: str) -> None:
    """Raise ValueError naming `what`, a divergence from a student, where the cache or the tail leave no mass for the rest."""
    if options.sampling != "top_k" or options.tail != "ghost":
        raise ValueError(
            f"{what} needs sampling = 'top_k' and tail = 'ghost', but they are {options.sampling!r} and {options.tail!r}: the "
            "divergence is infinite where the teacher has no mass: set them, or choose forward_kl"
        )
