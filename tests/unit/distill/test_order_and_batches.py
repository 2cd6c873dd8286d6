"""Training order, padding and per-step work against counts made by hand."""

from types import SimpleNamespace

import pytest
import torch
from torch.distributed.fsdp import MixedPrecisionPolicy

from workflow_scripts.distill.batching import pad_rows
from workflow_scripts.distill.corpus import loss_tokens
from workflow_scripts.distill.order import training_order, with_batch_tokens
from workflow_scripts.distill.training import IGNORE, Collator, MemoryShort, OrderedSampling, run, uneven_steps
from workflow_scripts.distill.work import ExampleWork, StepWork, work_per_step
from workflow_scripts.settings.schema import Training


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
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert [loss_tokens(row) for row in rows] == [2, 1]
    labels = Collator(rows, [], pad_id=0)([{"row": 0}, {"row": 1}])["labels"]
    assert labels.tolist() == [[IGNORE, IGNORE, 7, 8], [IGNORE, 4, IGNORE, IGNORE]]


def test_work_per_step_counts_padding_per_batch() -> None:
    work = [ExampleWork(2, (4,)), ExampleWork(1, (2,)), ExampleWork(3, (7, 5))]
    steps = work_per_step([0, 1, 2, 0], work, batch_size=2, accumulation=1)
    assert steps == [StepWork(2, 3, 6, 2), StepWork(2, 5, 16, 5)]
    assert work_per_step([0, 1, 2, 0], work, batch_size=2, accumulation=2) == [StepWork(4, 8, 22, 7)]


@pytest.mark.parametrize(
    ("tokens_per_row", "largest", "processes", "rows", "passes"),
    [
        (50, 8, 1, 8, 20),  # 160 rows of 50
        (100, 8, 1, 8, 10),
        (1000, 8, 1, 8, 1),
        (1600, 8, 1, 5, 1),  # 5 rows of 1600, no 8
        (2500, 8, 1, 3, 1),  # 3.2 rows: 3 are nearest
        (9000, 8, 1, 1, 1),
        (615, 8, 1, 1, 13),  # 13 rows of 615 are one by one only
        (100, 8, 4, 8, 10),
        (80, 128, 1, 100, 1),  # exact, where 96 to 105 are near enough
        (1600, 8, 4, 4, 1),  # a multiple of the processes
    ],
)
def test_steps_of_8000_tokens(tokens_per_row: int, largest: int, processes: int, rows: int, passes: int) -> None:
    block = Training(token_budget=80000, learning_rate=0.1, batch_size=largest, batch_tokens=8000, num_processes=processes)
    found = with_batch_tokens(block, [tokens_per_row - 1, tokens_per_row + 1], processes)
    assert (found.batch_size, found.gradient_accumulation_steps) == (rows, passes)
    rows_alone = block.model_copy(update={"batch_tokens": None})
    assert with_batch_tokens(rows_alone, [tokens_per_row], processes) == rows_alone


def test_a_step_has_as_many_tokens_in_a_method_of_long_and_one_of_short_rows() -> None:
    block = Training(token_budget=20000, learning_rate=0.1, batch_size=4, batch_tokens=1000)
    for lengths in ([150, 250, 200], [20, 30, 10], [45, 35]):
        own = with_batch_tokens(block, lengths, 1)
        order = training_order(lengths, lengths, own.token_budget, None, own.batch_size, seed=0)
        work = [ExampleWork(length, (length,)) for length in lengths]
        steps = work_per_step(order, work, own.batch_size, own.gradient_accumulation_steps)
        assert len(steps) in (20, 21) and not uneven_steps(own, steps)
    long = with_batch_tokens(block, [700], 1)
    assert uneven_steps(long, work_per_step([0, 0, 0], [ExampleWork(700, (700,))], 1, 1)) == [
        "training.batch_tokens = 1000, but steps of 1 row(s) have 700 loss tokens on average"
    ]


def test_memory_that_runs_out_in_a_training_names_the_remedy(tmp_path) -> None:
    class Full:
        args = SimpleNamespace(per_device_train_batch_size=8, fsdp="", device=torch.device("cpu"))

        def remove_callback(self, callback: object) -> None: ...

        def add_callback(self, callback: object) -> None: ...

        def train(self, resume_from_checkpoint: str | None) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore words")

    with pytest.raises(MemoryShort, match="with 8 rows .*halve training.batch_size and double .*Tried to allocate 2 GiB\\)$"):
        run(Full(), SimpleNamespace(progress=None), tmp_path)


def test_a_sharded_model_keeps_what_goes_in_and_comes_out() -> None:
    """The teacher's log-sums and dpo's log-probabilities, in bfloat16, would be multiples of 0.125 and of 4 nats."""

    class Prepared:
        def create_accelerator_and_postprocess(self) -> None:
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, torch.bfloat16)
            plugin = SimpleNamespace(mixed_precision_policy=policy)
            self.accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))

    class Ordered(OrderedSampling, Prepared): ...

    trainer = Ordered()
    trainer.create_accelerator_and_postprocess()
    policy = trainer.accelerator.state.fsdp_plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.cast_forward_inputs, policy.output_dtype) == (torch.bfloat16, False, None)
