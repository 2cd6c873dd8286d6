"""What each stage reads: the slice of the configuration that makes its result stale, and nothing else.

A slice travels as canonical JSON (validated, keys sorted) on the stage's command line. Snakemake compares it as a
parameter, the meter hashes it into the state folder's fingerprint.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import BaseModel

from workflow_scripts.settings import schema, sources
from workflow_scripts.settings.schema import Settings
from workflow_scripts.settings.sources import Section


class PrepareModelSlice(Section):
    """prepare_model: where one model comes from."""

    name: str
    source: sources.ModelSource


class PreprocessSlice(Section):
    """preprocess: one corpus, tokenised."""

    source: sources.DatasetSource
    max_sequence_length: int
    train_examples: int
    evaluation_examples: int
    seed: int
    chat_template: str

    @classmethod
    def of(cls, settings: Settings) -> PreprocessSlice:
        """Cut the slice out of the settings."""
        data = settings.data
        return cls(
            source=data.datasets[data.dataset_choice],
            max_sequence_length=data.max_sequence_length,
            train_examples=data.train_examples,
            evaluation_examples=data.evaluation_examples,
            seed=data.seed,
            chat_template=settings.model.chat_template,
        )


class CacheContent(Section):
    """What a logit cache keeps per position; keys of the other way of `sampling` are null."""

    sampling: Literal["top_k", "random"]
    top_k_logits: int | None = None
    sampling_draws: int | None = None
    sampling_seed: int | None = None

    @classmethod
    def of(cls, settings: Settings) -> CacheContent:
        """Cut it out of the settings."""
        distillation = settings.distillation
        names = {"top_k": ("top_k_logits",), "random": ("sampling_draws", "sampling_seed")}[distillation.sampling]
        chosen = {name: getattr(distillation, name) for name in ("sampling", *names)}
        return cls.model_validate(chosen)


class LogitCachingSlice(Section):
    """logit_caching: what is kept of the teacher's logits on the training split."""

    content: CacheContent
    cache_temperatures: list[float]
    shard_examples: int
    batch_size: int
    dtype: schema.Dtype
    attn_implementation: str
    logprob_cache_path: str | None

    @classmethod
    def of(cls, settings: Settings) -> LogitCachingSlice:
        """Cut the slice out of the settings."""
        distillation = settings.distillation
        return cls(
            content=CacheContent.of(settings),
            cache_temperatures=sorted(set(distillation.cache_temperatures)),
            shard_examples=distillation.shard_examples,
            batch_size=distillation.batch_size,
            dtype=settings.training.dtype,
            attn_implementation=settings.model.attn_implementation,
            logprob_cache_path=distillation.logprob_cache_path,
        )


class SyntheticGenerationSlice(Section):
    """synthetic_generation: teacher-written answers."""

    data: schema.SyntheticData
    dtype: schema.Dtype
    attn_implementation: str

    @classmethod
    def of(cls, settings: Settings) -> SyntheticGenerationSlice:
        """Cut the slice out of the settings."""
        return cls(
            data=settings.synthetic_data,
            dtype=settings.training.dtype,
            attn_implementation=settings.model.attn_implementation,
        )


class PreferenceDatasetSlice(Section):
    """preference_dataset: teacher samples, ranked by the teacher."""

    samples_per_prompt: int
    train_prompts: int
    evaluation_prompts: int
    keep_truncated: bool
    generation: schema.Generation
    judge_labeling: schema.JudgeLabeling
    dtype: schema.Dtype
    attn_implementation: str
    dpo_preference_dataset_path: str | None

    @classmethod
    def of(cls, settings: Settings) -> PreferenceDatasetSlice:
        """Cut the slice out of the settings."""
        dpo = settings.dpo
        return cls(
            samples_per_prompt=dpo.samples_per_prompt,
            train_prompts=dpo.train_prompts,
            evaluation_prompts=dpo.evaluation_prompts,
            keep_truncated=dpo.keep_truncated,
            generation=dpo.generation,
            judge_labeling=dpo.judge_labeling,
            dtype=settings.training.dtype,
            attn_implementation=settings.model.attn_implementation,
            dpo_preference_dataset_path=settings.dpo_preference_dataset_path,
        )


class KdLoss(Section):
    """The part of `distillation` that a training reads; random draws leave no tail, it is `zero` then."""

    alpha: float
    temperature: float
    tail: Literal["ghost", "renormalise", "zero"]

    @classmethod
    def of(cls, settings: Settings) -> KdLoss:
        """Cut it out of the settings."""
        distillation = settings.distillation
        tail = distillation.tail if distillation.sampling == "top_k" else "zero"
        return cls(alpha=distillation.alpha, temperature=distillation.temperature, tail=tail)


class StudentTrainSlice(Section):
    """student_train: kd, sft or baseline."""

    pipeline: Literal["kd", "sft", "baseline"]
    seed: int
    training: schema.Training
    kd: KdLoss | None
    cache: CacheContent | None = None
    attn_implementation: str

    @classmethod
    def of(cls, settings: Settings) -> StudentTrainSlice:
        """Cut the slice out of the settings."""
        is_kd = settings.pipeline == "kd"
        return cls.model_validate(
            {
                "pipeline": settings.pipeline,
                "seed": settings.experiment.seed,
                "training": settings.training,
                "kd": KdLoss.of(settings) if is_kd else None,
                "cache": CacheContent.of(settings) if is_kd else None,
                "attn_implementation": settings.model.attn_implementation,
            }
        )


class DpoTrainingSlice(Section):
    """dpo_training."""

    seed: int
    training: schema.Training
    beta: float
    loss_type: str
    attn_implementation: str

    @classmethod
    def of(cls, settings: Settings) -> DpoTrainingSlice:
        """Cut the slice out of the settings."""
        return cls(
            seed=settings.experiment.seed,
            training=settings.training.model_copy(update={"packing": False}),  # not read: changing it reruns nothing
            beta=settings.dpo.beta,
            loss_type=settings.dpo.loss_type,
            attn_implementation=settings.model.attn_implementation,
        )


class EvaluationSlice(Section):
    """evaluation of one model."""

    evaluation: schema.Evaluation
    dtype: schema.Dtype
    attn_implementation: str
    dpo_beta: float | None

    @classmethod
    def of(cls, settings: Settings) -> EvaluationSlice:
        """Cut the slice out of the settings."""
        return cls(
            evaluation=settings.evaluation,
            dtype=settings.training.dtype,
            attn_implementation=settings.model.attn_implementation,
            dpo_beta=settings.dpo.beta if settings.pipeline == "dpo" else None,
        )


class PrerunSlice(Section):
    """prerun of one kind of host."""

    hardware: schema.Hardware
    prerun: schema.Prerun

    @classmethod
    def of(cls, settings: Settings) -> PrerunSlice:
        """Cut the slice out of the settings."""
        return cls(hardware=settings.hardware, prerun=settings.prerun)


class WandbSlice(Section):
    """Where an experiment logs; changes no result, so no stage depends on it. `folder` takes the files of its W&B run."""

    wandb: schema.Wandb
    experiment: str
    pipeline: str
    folder: str

    @classmethod
    def of(cls, settings: Settings, experiment: str) -> WandbSlice:
        """Cut the slice out of the settings."""
        folder = settings.output.record_dir().format(experiment=experiment)
        return cls(wandb=settings.wandb, experiment=experiment, pipeline=settings.pipeline, folder=folder)

    @classmethod
    def nothing(cls, log_interval: int = 10) -> WandbSlice:
        """No W&B: a stage that is started by hand, or a process that is not the one that logs."""
        return cls(wandb=schema.Wandb(log_interval=log_interval), experiment="", pipeline="", folder="")


def settings_mark(text: str) -> str:
    """Short hash of a stage's canonical settings."""
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def canonical(model: BaseModel) -> str:
    """Serialise a slice so that equal settings give equal text: validated values, sorted keys, no spaces."""
    return json.dumps(model.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
