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
from trl import SFTConfig, SFTTrainer

from workflow_scripts.artefact import read_json
from workflow_scripts.distill import training
from workflow_scripts.distill.arguments import arguments
from workflow_scripts.distill.corpus import read_table
from workflow_scripts.distill.logit_cache import LogitCache
from workflow_scripts.distill.losses import KdLoss
from workflow_scripts.distill.models import load_model, load_tokenizer
from workflow_scripts.distill.order import training_order
from workflow_scripts.distill.packing import ROWWISE
from workflow_scripts.distill.preference_training import PreferenceTrainer, dpo_options
from workflow_scripts.settings.schema import Training

KD = KdLoss(alpha=0.5, temperature=1.0, tail="ghost")


@dataclass(frozen=True)
class Inputs:
    """What a finished `make demo` left: student, rows of the corpus, the teacher's logits on them."""

    student: Any
    tokenizer: Any
    rows: list[dict[str, Any]]
    cache: LogitCache

    @classmethod
    def read(cls, results: Path, rows: int, length: int | None = None) -> Inputs:
        """The first `rows` rows, or those nearest to `length` tokens. Raises FileNotFoundError without a finished demo."""
        corpus = one(results, "corpus/*/dataset")
        found = read_table(corpus / "train.parquet")
        if length is not None:
            found.sort(key=lambda row: abs(len(row["input_ids"]) - length))
        cache = one(results, "teacher/logit_cache-*/logit_cache")
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
    """Tokens (padding left out) per second over all steps but the first, of trainer `kd`, `sft`, `stock` or `trl`.

    The first two pack their rows, unless `padded_rows` stand for the inputs' own. `by_length` takes the order that a stage
    trains in. Compilation happens in the first step.
    """
    options = Training(
        token_budget=1,
        batch_size=batch,
        learning_rate=1e-5,
        dtype="auto",
        packing=packing and padded_rows is None and which in ("kd", "sft"),
        compile=compiled,
    )
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
    """Train a copy of the student for some steps with trainer `kd`, `sft`, `stock`, `trl` or `dpo`; the rows taken, in order.

    For `dpo` rows have `prompt_ids`, `chosen_ids` and `rejected_ids`; computing the reference is in no step.
    """
    inputs = replace(inputs, student=copy.deepcopy(inputs.student))
    if options.packing and which in ("kd", "sft"):
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
        trainer = _trainer(which, inputs, rows, order, options, steps, Path(folder))
        trainer.order = order
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(clock)
        trainer.train()
    if len(clock.seconds) != steps:
        raise RuntimeError(f"{which}: {len(clock.seconds)} steps were timed, {steps} asked for")
    return clock, order


def _trainer(
    which: str, inputs: Inputs, rows: list[dict[str, Any]], order: list[int], options: Training, steps: int, folder: Path
) -> Any:
    def setup(**own: Any) -> TrainingArguments:
        return arguments(options, 0, steps, folder, 1000, save_strategy="no", **own)

    numbers = training.row_numbers(range(len(rows)))
    cache = inputs.cache if which == "kd" else None
    common = {
        "model": inputs.student.train(),
        "train_dataset": numbers,
        "processing_class": inputs.tokenizer,
        "data_collator": training.Collator(
            rows, [], inputs.tokenizer.pad_token_id, cache, packing=options.packing and which in ("kd", "sft")
        ),
    }
    if which == "dpo":
        args = setup(**dpo_options(0.1, "sigmoid"))
        pairs = {
            "train_dataset": Dataset.from_list(rows),
            "processing_class": inputs.tokenizer,
            "model": inputs.student.train(),
        }
        return PreferenceTrainer(**pairs, args=args, order=order)
    if which in ("kd", "sft"):
        return training.DistillationTrainer(**common, args=setup(), order=order, kd=KD if which == "kd" else None)
    if which == "trl":
        args = setup(kind=SFTConfig, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
        return _StockTrl(**common | {"train_dataset": Dataset.from_list(numbers)}, args=args)
    return _Stock(**common, args=setup())
