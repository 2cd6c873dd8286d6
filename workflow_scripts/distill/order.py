"""The order in which a training sees its examples: fixed by seed and budget before it starts.

Because the order is a plain list, a resumed training continues with exactly the examples that were next, and the number
of optimizer steps is known to the learning rate schedule.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

from workflow_scripts.settings.schema import Training

_WINDOW_BATCHES = 8
_NEAR = 0.05  # a step within this share of `batch_tokens` is near enough to take fewer, larger forward passes


def with_batch_tokens(training: Training, loss_tokens: Sequence[int], processes: int) -> Training:
    """The training block with rows per forward pass and passes per step that come nearest to `batch_tokens`, if that is set.

    A step is passes x rows, of examples with these loss tokens [tokens per example]; rows are a multiple of `processes` and
    `batch_size` at most. Of the divisions that are near enough those with the fewest passes are taken, of these the nearest.
    """
    mean = statistics.fmean(loss_tokens) if loss_tokens else 0.0
    if training.batch_tokens is None or not mean:
        return training
    wanted = training.batch_tokens / mean
    found: dict[tuple[int, int], float] = {}
    for rows in range(training.batch_size, 0, -processes):
        passes = max(1, round(wanted / rows))
        found[passes, rows] = abs(passes * rows / wanted - 1)
    near = {division: off for division, off in found.items() if off <= _NEAR}
    passes, rows = min(near, key=lambda d: (d[0], near[d])) if near else min(found, key=lambda d: (found[d], d))
    return training.model_copy(update={"batch_size": rows, "gradient_accumulation_steps": passes})


def training_order(
    loss_tokens: Sequence[int],
    lengths: Sequence[int],
    token_budget: int,
    max_epochs: int | None,
    batch_size: int,
    seed: int,
) -> list[int]:
    """Indices of the examples to train on, in order, until their loss tokens reach `token_budget` or the epochs end.

    Every epoch is a new shuffle. Within windows of a few batches examples of similar length are put together, and the
    batches shuffled again, so that little is padded. Raises ValueError when no example carries loss.
    """
    if not any(loss_tokens):
        raise ValueError("no training example has a loss token")
    generator = random.Random(seed)
    order: list[int] = []
    spent, epoch = 0, 0
    while spent < token_budget and (max_epochs is None or epoch < max_epochs):
        for index in _epoch(lengths, batch_size, generator):
            if spent >= token_budget:
                break
            order.append(index)
            spent += loss_tokens[index]
        epoch += 1
    return order


def _epoch(lengths: Sequence[int], batch_size: int, generator: random.Random) -> list[int]:
    indices = list(range(len(lengths)))
    generator.shuffle(indices)
    window = batch_size * _WINDOW_BATCHES
    order: list[int] = []
    for begin in range(0, len(indices), window):
        part = sorted(indices[begin : begin + window], key=lambda i: lengths[i])
        batches = [part[b : b + batch_size] for b in range(0, len(part), batch_size)]
        short = [batches.pop()] if len(batches[-1]) < batch_size else []
        generator.shuffle(batches)
        order += [index for batch in batches + short for index in batch]
    return order
