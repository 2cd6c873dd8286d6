"""The order in which a training sees its examples: fixed by seed and budget before it starts.

Because the order is a plain list, a resumed training continues with exactly the examples that were next, and the number
of optimizer steps is known to the learning rate schedule.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

_WINDOW_BATCHES = 8


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
