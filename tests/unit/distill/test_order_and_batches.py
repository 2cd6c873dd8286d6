"""Training order, padding and per-step work against counts made by hand."""

from types import SimpleNamespace

import pytest
import torch

from workflow_scripts.distill.batching import pad_rows
from workflow_scripts.distill.corpus import loss_tokens
from workflow_scripts.distill.order import training_order
from workflow_scripts.distill.training import IGNORE, Collator, MemoryShort, run
from workflow_scripts.distill.work import ExampleWork, StepWork, work_per_step


def test_order_ends_at_the_budget_and_covers_every_epoch_once() -> None:
    tokens = [3, 5, 7, 2, 4]
    order = training_order(tokens, tokens, token_budget=50, max_epochs=None, batch_size=2, seed=1)
    spent = [sum(tokens[i] for i in order[:n]) for n in range(len(order) + 1)]
    assert spent[-1] >= 50 > spent[-2]
    assert sorted(order[:5]) == sorted(order[5:10]) == [0, 1, 2, 3, 4]
    assert order == training_order(tokens, tokens, 50, None, 2, 1)
    assert order != training_order(tokens, tokens, 50, None, 2, 2)
    assert len(training_order(tokens, tokens, 50, max_epochs=1, batch_size=2, seed=1)) == 5


def test_order_without_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="no training example has a loss token"):
        training_order([0, 0], [3, 3], 10, None, 1, 0)


def test_padding_and_targets() -> None:
    rows = [{"input_ids": [5, 6, 7, 8], "loss_mask": [0, 0, 1, 1]}, {"input_ids": [9, 4], "loss_mask": [1, 1]}]
    batch = pad_rows(rows, pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [9, 4, 0, 0]]
    assert batch.targets().tolist() == [7, 8, 4], "the first token of a row is never predicted"
    assert batch.padded_tokens() == 2
    assert [loss_tokens(row) for row in rows] == [2, 1]
    labels = Collator(rows, [], pad_id=0)([{"row": 0}, {"row": 1}])["labels"]
    assert labels.tolist() == [[IGNORE, IGNORE, 7, 8], [IGNORE, 4, IGNORE, IGNORE]]


def test_work_per_step_counts_padding_per_batch() -> None:
    work = [ExampleWork(2, (4,)), ExampleWork(1, (2,)), ExampleWork(3, (7, 5))]
    steps = work_per_step([0, 1, 2, 0], work, batch_size=2, accumulation=1)
    assert steps == [StepWork(2, 3, 6, 2), StepWork(2, 5, 16, 5)]
    assert work_per_step([0, 1, 2, 0], work, batch_size=2, accumulation=2) == [StepWork(4, 8, 22, 7)]


def test_memory_that_runs_out_in_a_training_names_the_remedy(tmp_path) -> None:
    class Full:
        args = SimpleNamespace(per_device_train_batch_size=8, fsdp="", device=torch.device("cpu"))

        def remove_callback(self, callback: object) -> None: ...

        def add_callback(self, callback: object) -> None: ...

        def train(self, resume_from_checkpoint: str | None) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore words")

    with pytest.raises(MemoryShort, match="with 8 rows .*halve training.batch_size and double .*Tried to allocate 2 GiB\\)$"):
        run(Full(), SimpleNamespace(progress=None), tmp_path)
