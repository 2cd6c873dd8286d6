"""Trainings of a toy model, alone and sharded over two gloo processes on CPU.

    python -m tests.integration.sharded_training FOLDER

For kd and dpo each: alone; sharded; sharded again after the last checkpoint was lost. Losses and weights of each are left in
FOLDER/<kind>/<run>. All are forks of this process, which has done the imports.

accelerate takes FSDP up for GPUs only. Here that one condition is lifted, so that all that follows (wrapping, the fused loss
on shards, checkpoints, the gathered weights) runs as it does on GPUs.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workflow_scripts.distill import training
from workflow_scripts.distill.arguments import arguments
from workflow_scripts.distill.packing import ROWWISE
from workflow_scripts.distill.parallel import is_main, world_size
from workflow_scripts.distill.preference_training import PreferenceTrainer, dpo_options
from workflow_scripts.distill.work import ExampleWork, WorkCallback, work_per_step
from workflow_scripts.progress import Progress
from workflow_scripts.settings.schema import Training

ROWS, BATCH, VOCABULARY = 20, 4, 97  # an odd vocabulary: two processes hold shards of different size
STEPS, SAVE_STEPS = ROWS // BATCH, 3


def shard_on_cpu() -> None:
    """Lift accelerate's condition that FSDP needs an accelerator."""
    begin = AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **options: Any) -> None:
        first = not AcceleratorState._shared_state
        begin(self, *args, fsdp_plugin=fsdp_plugin, **options)
        if first and fsdp_plugin is not None:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = init


def make_toy(folder: Path) -> None:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=2, tie_word_embeddings=True, **size)).save_pretrained(
        folder
    )


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="t0", eos_token="t2", unk_token="t0")


def tokens(number: int, length: int) -> list[int]:
    return torch.randint(3, VOCABULARY, (length,), generator=torch.Generator().manual_seed(number)).tolist()


def shared_rows(rows: list[dict[str, Any]], folder: Path) -> Dataset:
    """A data set in a file, so that all processes have one cache: the first writes the reference's log-probabilities there."""
    file = folder / "pairs.parquet"
    if not file.exists():
        Dataset.from_list(rows).to_parquet(file)
    return Dataset.from_parquet(str(file), cache_dir=str(folder))


def make_trainer(kind: str, toy: Path, setup: tuple[Any, ...]) -> training.DistillationTrainer | PreferenceTrainer:
    attention = "sdpa" if kind == "dpo" else ROWWISE
    model = LlamaForCausalLM.from_pretrained(toy, dtype=torch.float32, attn_implementation=attention)
    order = list(range(ROWS))
    if kind == "dpo":
        pairs = [
            {"prompt_ids": tokens(i, 3), "chosen_ids": tokens(50 + i, 4), "rejected_ids": tokens(99 + i, 5)} for i in order
        ]
        return PreferenceTrainer(
            model=model,
            args=arguments(*setup, **dpo_options(0.1, "sigmoid")),
            train_dataset=shared_rows(pairs, toy.parent / "datasets"),
            processing_class=tokenizer(),
            order=order,
        )
    rows = [{"input_ids": tokens(i, 6 + i % 5), "loss_mask": [0, 0] + [1] * (4 + i % 5), "example_id": str(i)} for i in order]
    return training.DistillationTrainer(
        model=model,
        args=arguments(*setup),
        train_dataset=training.row_numbers([*order, training.FILLER]),
        processing_class=tokenizer(),
        data_collator=training.Collator(rows, [], 0, packing=True),
        order=training.whole_batches(order, BATCH, ROWS),
        kd=None,
    )


def train(kind: str, toy: Path, folder: Path, fsdp: bool) -> None:
    """One process of one training."""
    options = Training(
        token_budget=1000,
        num_processes=world_size(),
        fsdp=fsdp,
        batch_size=BATCH,
        dtype="float32",
        learning_rate=1e-2,
        save_steps=SAVE_STEPS,
    )
    work = [ExampleWork(4, (6,))] * ROWS
    steps = work_per_step(range(ROWS), work, BATCH // world_size(), world_size())
    with Progress("loss", total=1) as progress:
        trainer = make_trainer(kind, toy, (options, 1, STEPS, folder, 1))
        training.run(trainer, WorkCallback(progress, steps), folder)
    weights = training.full_weights(trainer) or trainer.model.state_dict()
    if is_main():
        save_file({name: w.clone() for name, w in weights.items()}, folder / "weights.safetensors")
        losses = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
        (folder / "losses.json").write_text(json.dumps([losses[step] for step in sorted(losses)]))


def fork(kind: str, toy: Path, folder: Path, processes: int) -> None:
    """Train in so many forks of this process."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    children = []
    for rank in range(processes):
        if child := os.fork():
            children.append(child)
            continue
        try:
            if processes > 1:
                where = {
                    "RANK": rank,
                    "LOCAL_RANK": rank,
                    "WORLD_SIZE": processes,
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                }
                os.environ.update({name: str(value) for name, value in where.items()})
                shard_on_cpu()
            train(kind, toy, folder, fsdp=processes > 1)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    codes = [os.waitpid(child, 0)[1] for child in children]
    if any(codes):
        sys.exit(f"{kind} with {processes} process(es) failed")


def main() -> None:
    root = Path(sys.argv[1])
    make_toy(root / "toy")
    (root / "datasets").mkdir()
    for kind in ("kd", "dpo"):
        folder = root / kind
        fork(kind, root / "toy", folder / "alone", 1)
        fork(kind, root / "toy", folder / "sharded", 2)
        shutil.copytree(folder / "sharded", folder / "resumed")
        shutil.rmtree(folder / "resumed" / f"checkpoint-{STEPS}")
        fork(kind, root / "toy", folder / "resumed", 2)


if __name__ == "__main__":
    main()
