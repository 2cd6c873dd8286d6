"""The registry: every stage and every pipeline is one entry here, and nowhere else.

A stage is what the meter measures and a record describes; a pipeline is a way from the teacher to a trained student. Plan,
rules, settings, exports, estimates and documentation read these tables. What a stage reads of the configuration is declared as
dotted keys: a section (`training`) stands for all of its keys, `section.<section.key>` for the entry that another key names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workflow_scripts.settings.schema import Settings

# Where files lie is no part of a result: these keys reach the stage, but make nothing stale.
LOCATIONS = (
    "distillation.logprob_cache_path",
    "dpo_preference_dataset_path",
    "synthetic_data.synthetic_dataset_path",
)
# Seeds of the teacher's sampling: those of the run where `experiment.teacher_seeds` asks for it.
TEACHER_SEEDS = ("distillation.sampling_seed", "synthetic_data.generation.seed", "dpo.generation.seed", "opd.generation.seed")


@dataclass(frozen=True)
class Where:
    """Keys that are read only where another key has a value."""

    key: str
    value: str | bool
    reads: tuple[str, ...]


Reads = tuple[str | Where, ...]


@dataclass(frozen=True)
class Split:
    """A teacher stage whose work is done in parts and gathered by a merge, which needs no model."""

    part_rule: str
    merge_rule: str
    reads: Reads  # what the merge alone reads
    units: Callable[[Settings], float]  # units of the work, at most
    sizes: str  # the key that says how large a unit is
    keeps_parts: bool  # whether units stay after the merge, so that another merge needs no teacher
    existing: str | None = None  # the key that adopts what is there instead


@dataclass(frozen=True)
class Stage:
    """A metered stage. `folder` is that of its artefact, `in_summary` its name in an experiment's summary."""

    name: str
    role: str  # prerun, data, teacher, student, evaluation; accounting where it is on no bill
    reads: Reads = ()
    ignores: tuple[str, ...] = ()  # keys of a section in `reads` that it does not read
    folder: str = ""
    in_summary: str = ""
    split: Split | None = None
    location: str | None = None  # the key that moves the artefact's files elsewhere
    boamps: str = "preprocessing"  # taskStage of a BoAmps report
    judge: Callable[[Settings], str | None] | None = None  # another model that it asks, its input `judge`

    def __post_init__(self) -> None:
        object.__setattr__(self, "in_summary", self.in_summary or self.name)


@dataclass(frozen=True)
class Pipeline:
    """A way of making a student. `starts_with` names the input of the training that holds the starting weights."""

    name: str
    sentence: str
    training: str
    teacher: str | None = None
    reads: Reads = ()  # what its training reads beside what the training stage always does
    evaluates: Reads = ()  # what its evaluation reads beside what every one does
    starts_with: str = "student"
    teacher_output: str = "teacher_output"  # the training's input that holds what the teacher made
    one_vocabulary: bool = False  # teacher and student exchange token ids
    checks_teacher: bool = False  # the training checks that its input was made by this teacher
    from_policy: bool = False  # may start from another experiment's model (`model.policy`)
    in_rounds: bool = False  # trains `opd.rounds` times on what it has written itself
    judged_on_pairs: bool = False  # the evaluation has margins on held-out pairs
    boamps: str = ""  # trainingType of a BoAmps report


INFERENCE: Reads = ("training.dtype", "model.attn_implementation")
TEACHER: Reads = ("teacher.dtype", "model.attn_implementation", "experiment.replicate")
_CACHE: Reads = (
    "distillation.sampling",
    Where("distillation.sampling", "top_k", ("distillation.top_k_logits",)),
    Where("distillation.sampling", "random", ("distillation.sampling_draws", "distillation.sampling_seed")),
)


def scored_rows(settings: Settings) -> int:
    """Rows of a logit cache at most: of the corpus, or what the student writes in a round."""
    rows = settings.data.train_examples
    return min(rows, settings.opd.prompts_per_round) if PIPELINES[settings.pipeline].in_rounds else rows


STAGES = {
    stage.name: stage
    for stage in (
        Stage("prerun", "prerun", ("hardware", "prerun")),
        Stage("prepare_model", "data", ("models",), folder="model"),
        Stage("check_tokenizers", "accounting"),
        Stage(
            "preprocess",
            "data",
            (
                *("data.dataset_choice", "data.datasets.<data.dataset_choice>", "data.max_sequence_length"),
                *("data.train_examples", "data.evaluation_examples", "data.seed", "data.max_dropped_share"),
                "model.chat_template",
            ),
            folder="dataset",
        ),
        Stage(
            "logit_caching",
            "teacher",
            (
                *_CACHE,
                *("distillation.cache_temperatures", "distillation.shard_examples", "distillation.batch_size"),
                *TEACHER,
            ),
            folder="logit_cache",
            location="distillation.logprob_cache_path",
            boamps="datacreation",
            split=Split(
                "cache_logits",
                "merge_logits",
                reads=("distillation.logprob_cache_path",),
                units=lambda s: scored_rows(s) / s.distillation.shard_examples,
                sizes="distillation.shard_examples",
                keeps_parts=False,
            ),
        ),
        Stage(
            "synthetic_generation",
            "teacher",
            ("synthetic_data.max_gen_examples", "synthetic_data.generation", *TEACHER),
            folder="synthetic_dataset",
            in_summary="teacher_generation",
            location="synthetic_data.synthetic_dataset_path",
            boamps="datacreation",
            split=Split(
                "generate_answers",
                "merge_answers",
                reads=(*("synthetic_data.filtering", "synthetic_data.use_existing", "synthetic_data.synthetic_dataset_path"),),
                units=lambda s: s.synthetic_data.max_gen_examples / s.synthetic_data.generation.batch_size,
                sizes="synthetic_data.generation.batch_size",
                keeps_parts=True,
                existing="synthetic_data.use_existing",
            ),
        ),
        Stage(
            "preference_dataset",
            "teacher",
            (
                *("dpo.samples_per_prompt", "dpo.train_prompts", "dpo.evaluation_prompts", "dpo.generation"),
                Where("dpo.judge_labeling.scoring_method", "judge", ("dpo.judge_labeling.scoring_method",)),
                *TEACHER,
            ),
            folder="preference_dataset",
            in_summary="teacher_generation",
            location="dpo_preference_dataset_path",
            boamps="datacreation",
            judge=lambda s: s.dpo.judge_labeling.other_judge(),
            split=Split(
                "rank_pairs",
                "merge_pairs",
                reads=(
                    *("dpo.keep_truncated", "dpo.judge_labeling.scoring_method", "dpo.judge_labeling.min_margin"),
                    "dpo_preference_dataset_path",
                ),
                units=lambda s: (
                    (s.dpo.train_prompts + s.dpo.evaluation_prompts)
                    / max(1, s.dpo.generation.batch_size // s.dpo.samples_per_prompt)
                ),
                sizes="dpo.generation.batch_size",
                keeps_parts=True,
            ),
        ),
        Stage(
            "rollout",
            "student",
            ("opd.prompts_per_round", "opd.generation", *INFERENCE, "experiment.replicate"),
            folder="rollouts",
            boamps="datacreation",
            split=Split(
                "write_rollouts",
                "merge_rollouts",
                reads=(),
                units=lambda s: s.opd.prompts_per_round / s.opd.generation.batch_size,
                sizes="opd.generation.batch_size",
                keeps_parts=True,
            ),
        ),
        Stage(
            "student_train",
            "student",
            ("experiment.seed", "training", "model.attn_implementation"),
            folder="final_model",
            boamps="finetuning",
        ),
        Stage(
            "dpo_training",
            "student",
            ("experiment.seed", "training", "model.attn_implementation"),
            ignores=("training.packing",),  # TRL has no packing for pairs
            folder="final_policy",
            boamps="finetuning",
        ),
        Stage("evaluation", "evaluation", ("evaluation", *INFERENCE), boamps="inference"),
        Stage("experiment_summary", "accounting"),
        Stage("export", "accounting"),
        Stage("wandb_summary", "accounting"),
        Stage("comparison", "accounting", ("comparison.quality", "comparison.baseline", "comparison.target_quality")),
    )
}

PIPELINES = {
    pipeline.name: pipeline
    for pipeline in (
        Pipeline(
            "kd",
            "knowledge distillation on the teacher's logits",
            "student_train",
            "logit_caching",
            reads=(
                *("distillation.alpha", "distillation.temperature", *_CACHE),
                Where("distillation.sampling", "top_k", ("distillation.tail",)),
                "distillation.divergence",
                Where("distillation.divergence", "jsd", ("distillation.beta",)),
            ),
            one_vocabulary=True,
            checks_teacher=True,
            boamps="knowledge distillation",
        ),
        Pipeline(
            "sft",
            "fine-tuning on text that the teacher wrote",
            "student_train",
            "synthetic_generation",
            boamps="supervisedLearning",
        ),
        Pipeline(
            "dpo",
            "direct preference optimisation on pairs that the teacher wrote and ranked",
            "dpo_training",
            "preference_dataset",
            reads=("dpo.beta", "dpo.loss_type"),
            evaluates=("dpo.beta", "dpo.loss_type"),
            starts_with="policy",
            teacher_output="preferences",
            from_policy=True,
            judged_on_pairs=True,
            boamps="direct preference optimisation",
        ),
        Pipeline(
            "opd",
            "on-policy distillation: the student writes, the teacher scores what it wrote",
            "student_train",
            "logit_caching",
            reads=(
                *("distillation.temperature", *_CACHE, "opd.divergence"),
                Where("opd.divergence", "jsd", ("opd.beta",)),
                Where("distillation.sampling", "top_k", ("distillation.tail",)),
            ),
            one_vocabulary=True,
            checks_teacher=True,
            from_policy=True,
            in_rounds=True,
            boamps="on-policy distillation",
        ),
        Pipeline("baseline", "fine-tuning on the data's own answers", "student_train", boamps="supervisedLearning"),
    )
}

TEACHER_STAGES = tuple(name for name, stage in STAGES.items() if stage.split)
TRAININGS = tuple(dict.fromkeys(pipeline.training for pipeline in PIPELINES.values()))
IN_SUMMARY = {stage.in_summary: stage for stage in STAGES.values() if stage.role != "accounting"}


def round_name(stage: str, number: int) -> str:
    """Name of a stage of a round from 0 in a summary. The first round's is plain: the other ones can be shared by nobody."""
    return f"{stage}_round{number + 1}" if number else stage


def plain_name(name: str) -> str:
    """Name of a stage of a summary without its round."""
    return re.sub(r"_round\d+$", "", name)


def training_of(pipeline: str) -> str:
    """Training stage of a pipeline; of an imported experiment whose pipeline is not known, the common one."""
    return PIPELINES[pipeline].training if pipeline in PIPELINES else "student_train"


def teacher_of(pipeline: str) -> list[str]:
    """Name of a pipeline's teacher stage in a summary; none where it has no teacher or is not known."""
    teacher = PIPELINES[pipeline].teacher if pipeline in PIPELINES else None
    return [STAGES[teacher].in_summary] if teacher else []


def splits() -> Iterator[tuple[Stage, Split]]:
    """Teacher stages with how they are split."""
    return ((stage, stage.split) for stage in STAGES.values() if stage.split)


def exports() -> dict[str, str]:
    """Rule that writes the card of a trained model, by the folder of the model."""
    folders = [STAGES[training].folder for training in TRAININGS]
    return {folder: f"export_{folder.removeprefix('final_')}" for folder in folders}


def rules() -> dict[str, str]:
    """Family of each metered rule: the role of its stage; a merge or an export needs no more than accounting does."""
    found: dict[str, str] = {}
    for name, stage in STAGES.items():
        family = "evaluation" if stage.role == "prerun" else stage.role
        if stage.split:
            found |= {stage.split.part_rule: family, stage.split.merge_rule: "accounting"}
        elif name != "export":
            found[name] = family
    more = {"train_round": "student", "reference_evaluation": "evaluation"}
    return found | more | dict.fromkeys(exports().values(), "accounting")
