"""What DPO does before its first step."""

from __future__ import annotations

from pathlib import Path

import torch
from datasets import Dataset
from transformers import LlamaForCausalLM

from tests.integration.sharded_training import make_toy, tokenizer, tokens
from workflow_scripts.distill.arguments import arguments
from workflow_scripts.distill.preference_training import PreferenceTrainer, dpo_options
from workflow_scripts.progress import Progress
from workflow_scripts.settings.schema import Training


def test_what_the_reference_thinks_is_work_and_no_start_up(tmp_path: Path) -> None:
    make_toy(tmp_path / "toy")
    pairs = [{"prompt_ids": tokens(i, 3), "chosen_ids": tokens(50 + i, 4), "rejected_ids": tokens(99 + i, 5)} for i in range(8)]
    options = Training(token_budget=10, dtype="float32", learning_rate=1e-4, batch_size=4, eval_steps=1)
    with Progress("loss", phase="start") as progress:
        trainer = PreferenceTrainer(
            model=LlamaForCausalLM.from_pretrained(tmp_path / "toy", dtype=torch.float32),
            args=arguments(options, 0, 2, tmp_path / "checkpoints", 1, **dpo_options(0.1, "sigmoid")),
            train_dataset=Dataset.from_list(pairs),
            eval_dataset=Dataset.from_list(pairs[:2]),
            processing_class=tokenizer(),
            order=list(range(8)),
            progress=progress,
        )
        assert [name for name, _ in progress._marks] == ["start", "work", "start", "evaluate", "start"]
    assert "ref_chosen_logps" in trainer.train_dataset.column_names
