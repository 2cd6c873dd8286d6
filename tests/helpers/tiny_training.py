"""Whole trainings of a tiny random model on made-up rows, seconds each."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from workflow_scripts.distill import packing, training
from workflow_scripts.distill.adapters import add_adapters
from workflow_scripts.distill.arguments import arguments
from workflow_scripts.distill.budget import EnergyBudget, EvaluationGrid
from workflow_scripts.distill.corpus import loss_tokens
from workflow_scripts.distill.order import training_order
from workflow_scripts.distill.work import ExampleWork, WorkCallback, work_per_step
from workflow_scripts.progress import Progress
from workflow_scripts.settings.schema import Training

VOCABULARY = 61
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of 4 to 20 tokens; the first third of a row is a prompt without loss."""
    generator = random.Random(seed)
    made = []
    for number in range(count):
        length = generator.randint(4, 20)
        ids = [generator.randrange(3, VOCABULARY) for _ in range(length)]
        made.append({"example_id": number, "input_ids": ids, "loss_mask": [int(i >= length // 3) for i in range(length)]})
    return made


def model(attention: str = "eager", config: Any = None) -> Any:
    """The same random weights for any attention."""
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(config or LlamaConfig(**SIZES), attn_implementation=attention).float()


@dataclass
class Trained:
    """What a training left."""

    losses: list[float]
    metrics: dict[str, Any]
    weights: dict[str, torch.Tensor]
    progress: Progress
    callback: WorkCallback


def tokenizer() -> PreTrainedTokenizerFast:
    """Words w0, w1, ... for the ids."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, "<pad>")), pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def train(
    folder: Path, held_out: int = 0, each_step: Callable[[int, WorkCallback], None] | None = None, **options: Any
) -> Trained:
    """Train on 10 rows to 300 loss tokens, logging every step; `each_step` is called before the callback sees a step's end."""
    data, evaluation = rows(10), rows(held_out, seed=9)
    block = Training(
        **{"token_budget": 300, "batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 1e-2, "dtype": "float32"}
        | options
    )
    work = [ExampleWork(loss_tokens(row), (len(row["input_ids"]),)) for row in data]
    order = training_order(
        [w.loss for w in work], [w.lengths[0] for w in work], block.token_budget, block.max_epochs, block.batch_size, 1
    )
    steps = work_per_step(order, work, block.batch_size, block.gradient_accumulation_steps, block.packing)
    student = model(packing.ROWWISE if block.packing else "sdpa")
    if block.lora:
        add_adapters(student, block.lora, 1)
    if block.compile:
        training.compile_layers(student, folder / "compiled")
    planned = sum(step.loss for step in steps)
    with Progress("loss", total=planned) as progress:
        by_the_meter = EnergyBudget.of(block), EvaluationGrid.of(block)
        callback = WorkCallback(progress, steps, None, training.ended_by(block, planned), *by_the_meter)
        if each_step is not None:
            real = callback.on_step_end

            def hooked(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                each_step(state.global_step, callback)
                real(args, state, control, **kwargs)

            callback.on_step_end = hooked  # type: ignore[method-assign]
        trainer = training.DistillationTrainer(
            model=student,
            args=arguments(block, 1, len(steps), folder, 1),
            train_dataset=training.row_numbers([*range(len(data)), training.FILLER]),
            eval_dataset=training.row_numbers(range(10, 10 + held_out)) if held_out else None,
            processing_class=tokenizer(),
            data_collator=training.Collator(data, evaluation, 0, packing=block.packing),
            order=training.whole_batches(order, block.batch_size, len(data)),
            kd=None,
        )
        progress.metrics = training.run(trainer, callback, folder)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    weights = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
    return Trained(losses, progress.metrics, weights, progress, callback)
