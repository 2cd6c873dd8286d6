"""Trainings of the same rows, batches and model by different trainers."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from trl import DistillationConfig, DistillationTrainer, SFTConfig, SFTTrainer

from workflow_scripts.artefact import read_json
from workflow_scripts.distill import training
from workflow_scripts.distill.adapters import add_adapters
from workflow_scripts.distill.arguments import arguments
from workflow_scripts.distill.batching import pad_rows
from workflow_scripts.distill.corpus import read_table
from workflow_scripts.distill.logit_cache import LogitCache, teacher_rows
from workflow_scripts.distill.losses import KdLoss, SparseTeacher, fused_distillation_loss
from workflow_scripts.distill.models import load_model, load_tokenizer
from workflow_scripts.distill.order import training_order
from workflow_scripts.distill.packing import ROWWISE
from workflow_scripts.distill.preference_training import PreferenceTrainer, dpo_options
from workflow_scripts.settings.schema import Lora, Training

OURS = {  # trainers with our loss, by their objective
    "kd": KdLoss(alpha=0.5),
    "kd_reverse": KdLoss(alpha=0.5, divergence="reverse_kl"),
    "opd": KdLoss(alpha=0.0, divergence="reverse_kl"),
    "sft": None,
    "kd_lora": KdLoss(alpha=0.5),  # adapters of training.lora's defaults
}


@dataclass(frozen=True)
class Inputs:
    """What a finished `make demo` left: student, rows of the corpus, the teacher's logits on them."""

    student: Any
    tokenizer: Any
    rows: list[dict[str, Any]]
    cache: LogitCache
    teacher: Any = None

    @classmethod
    def rollouts(cls, results: Path, rows: int, teacher: bool = False) -> Inputs:
        """The last rollouts of a finished `demo_opd`, their scores, and the teacher where it is asked for."""
        made = one(results, "teacher/rollouts-*/rollouts")
        cache = cache_of(results, made)
        found = read_table(made / "train.parquet")
        return cls(
            load_model(one(results, "models/*pruned/model"), torch.float32),
            load_tokenizer(made / "tokenizer"),
            [found[i % len(found)] for i in range(rows)],
            LogitCache(cache, read_json(cache / "manifest.json")),
            load_model(one(results, "models/*instruct/model"), torch.float32) if teacher else None,
        )

    @classmethod
    def read(cls, results: Path, rows: int, length: int | None = None) -> Inputs:
        """The first `rows` rows, or those nearest to `length` tokens. Raises FileNotFoundError without a finished demo."""
        corpus = one(results, "corpus/*/dataset")
        found = read_table(corpus / "train.parquet")
        if length is not None:
            found.sort(key=lambda row: abs(len(row["input_ids"]) - length))
        cache = cache_of(results, corpus)
        return cls(
            load_model(one(results, "models/*pruned/model"), torch.float32),
            load_tokenizer(corpus / "tokenizer"),
            found[:rows],
            LogitCache(cache, read_json(cache / "manifest.json")),
        )


def one(results: Path, pattern: str) -> Path:
    """The first match of a pattern under the results."""
    for path in sorted(results.glob(pattern)):
        return path
    raise FileNotFoundError(f"{results}/{pattern}: run `make demo` first, or give --results")


def cache_of(results: Path, corpus: Path) -> Path:
    """The logit cache of a corpus, or of rollouts. Raises FileNotFoundError without one."""
    wanted = read_json(corpus / "manifest.json")["corpus_sha256"]
    for path in sorted(results.glob("teacher/logit_cache-*/logit_cache")):
        if read_json(path / "manifest.json")["corpus_sha256"] == wanted:
            return path
    raise FileNotFoundError(f"{results} has no logit cache of {corpus}: run `make demo` first, or give --results")


@dataclass
class Clock(TrainerCallback):
    """Seconds of each optimizer step, and when it began [unix s]; the accelerator has finished the step."""

    seconds: list[float] = field(default_factory=list)
    began: list[float] = field(default_factory=list)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began.append(time.time())
        self._mark = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._mark)


class _Stock(training.OrderedSampling, Trainer):
    """The Hugging Face Trainer with the model's own loss."""


class TrlOnPolicy(training.OrderedSampling, DistillationTrainer):
    """TRL's DistillationTrainer with rollouts that are there already."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [self.rollouts[entry["row"]] for entry in inputs]
        starts = [row["loss_mask"].index(1) for row in rows]
        prompts = [row["input_ids"][:start] for row, start in zip(rows, starts, strict=True)]
        answers = [row["input_ids"][start:] for row, start in zip(rows, starts, strict=True)]
        found = {}
        for name, texts, side in (("prompt", prompts, "left"), ("completion", answers, "right")):
            for key, values in (("ids", texts), ("mask", [[1] * len(text) for text in texts])):
                fill = self.processing_class.pad_token_id if key == "ids" else 0
                tensors = [torch.tensor(value) for value in values]
                found[f"{name}_{key}"] = torch.nn.utils.rnn.pad_sequence(
                    tensors, batch_first=True, padding_value=fill, padding_side=side
                ).to(self.args.device)
        return found | {"num_items_in_batch": found["completion_mask"].sum()}


class _StockTrl(training.OrderedSampling, SFTTrainer):
    """TRL's SFTTrainer with its own loss."""


def train(
    which: str,
    inputs: Inputs,
    batch: int,
    steps: int,
    padded_rows: list[dict[str, Any]] | None = None,
    packing: bool = True,
    compiled: bool = False,
    by_length: bool = False,
) -> float:
    """Tokens (padding left out) per second over all steps but the first, of a trainer of OURS, `stock`, `trl` or `trl_opd`.

    Ours pack their rows, unless `padded_rows` stand for the inputs' own. `by_length` takes the order that a stage
    trains in. Compilation happens in the first step.
    """
    packed = packing and padded_rows is None and which in OURS
    options = Training(token_budget=1, batch_size=batch, learning_rate=1e-5, dtype="auto", packing=packed, compile=compiled)
    clock, order = timed(which, inputs, options, steps, padded_rows, by_length)
    counted = order[batch:] or order
    tokens = sum(len(inputs.rows[i]["input_ids"]) for i in counted)
    return tokens / sum(clock.seconds[1:] or clock.seconds)


def timed(
    which: str,
    inputs: Inputs,
    options: Training,
    steps: int,
    padded_rows: Sequence[dict[str, Any]] | None = None,
    by_length: bool = False,
) -> tuple[Clock, list[int]]:
    """Train a copy of the student for some steps with one of OURS, `stock`, `trl`, `trl_opd` or `dpo`; the rows taken.

    For `dpo` rows have `prompt_ids`, `chosen_ids` and `rejected_ids`; computing the reference is in no step.
    """
    inputs = replace(inputs, student=copy.deepcopy(inputs.student))
    if which == "kd_lora":
        add_adapters(inputs.student, Lora(), 0)
    if options.packing and which in OURS:
        inputs.student.set_attn_implementation(ROWWISE)
    rows = list(padded_rows or inputs.rows)
    order = [i % len(rows) for i in range(options.batch_size * steps)]
    if by_length:
        lengths = [len(row["input_ids"]) for row in rows]
        order = training_order(lengths, lengths, 10**9, steps, options.batch_size, 0)[: options.batch_size * steps]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        if options.compile:
            training.compile_layers(inputs.student, Path(folder) / "compiled")
        trainer = trainer_of(which, inputs, rows, order, options, steps, Path(folder))
        trainer.order = order
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(clock)
        trainer.train()
    if len(clock.seconds) != steps:
        raise RuntimeError(f"{which}: {len(clock.seconds)} steps were timed, {steps} asked for")
    return clock, order


def trainer_of(
    which: str, inputs: Inputs, rows: list[dict[str, Any]], order: list[int], options: Training, steps: int, folder: Path
) -> Any:
    def setup(**own: Any) -> TrainingArguments:
        return arguments(options, 0, steps, folder, 1000, save_strategy="no", **own)

    numbers = training.row_numbers(range(len(rows)))
    cache = inputs.cache if OURS.get(which) else None
    common = {
        "model": inputs.student.train(),
        "train_dataset": numbers,
        "processing_class": inputs.tokenizer,
        "data_collator": training.Collator(
            rows, [], inputs.tokenizer.pad_token_id, cache, packing=options.packing and which in OURS
        ),
    }
    if which == "dpo":
        args = setup(**dpo_options(0.1, "sigmoid"))
        pairs = {"train_dataset": Dataset.from_list(rows), "processing_class": inputs.tokenizer}
        return PreferenceTrainer(model=inputs.student.train(), **pairs, args=args, order=order)
    if which in OURS:
        return training.DistillationTrainer(**common, args=setup(), order=order, kd=OURS[which])
    if which == "trl_opd":
        args = setup(kind=DistillationConfig, beta=1.0, shuffle_dataset=False)
        data = Dataset.from_list([{"prompt": "-", "row": number} for number in range(len(rows))])
        own = {"teacher_model": inputs.teacher, "train_dataset": data, "processing_class": inputs.tokenizer}
        trainer = TrlOnPolicy(model=inputs.student.train(), args=args, **own)
        trainer.rollouts = rows
        return trainer
    if which == "trl":
        args = setup(kind=SFTConfig, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
        return _StockTrl(**common | {"train_dataset": Dataset.from_list(numbers)}, args=args)
    return _Stock(**common, args=setup())


def on_policy_losses(inputs: Inputs, rows: int = 6) -> tuple[float, float]:
    """Reverse KL per token of the same rollouts: ours with the teacher's whole distribution, and TRL's."""
    found, pad = inputs.rows[:rows], inputs.tokenizer.pad_token_id
    vocabulary = len(inputs.tokenizer)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        options = Training(token_budget=1, batch_size=rows, learning_rate=1e-5, dtype="float32")
        trainer = trainer_of("trl_opd", inputs, found, list(range(rows)), options, 1, Path(folder))
        batch = trainer._generate_and_score_completions([{"row": number} for number in range(rows)])
        theirs = trainer.compute_loss(trainer.model, batch).item()
        shard = teacher_rows(inputs.teacher, found, vocabulary, [1.0], pad, vocabulary)
        teacher = SparseTeacher(shard.ids, shard.logits.float(), shard.rest[:, 0])
        padded = pad_rows(found, pad)
        hidden = inputs.student.model(padded.input_ids, padded.attention_mask, use_cache=False).last_hidden_state
        labels = padded.input_ids.roll(-1, 1)[padded.predicts]
        head = inputs.student.lm_head.weight
        terms = fused_distillation_loss(hidden[padded.predicts], head, labels, teacher, KdLoss(0.0, divergence="reverse_kl"))
    return (terms.total / len(labels)).item(), theirs
