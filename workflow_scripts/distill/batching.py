"""Rows of tokens into padded batches, with little padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

Row = TypeVar("Row")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Batch:
    """`input_ids`, `attention_mask` [B, L] int64 and `predicts` [B, L] bool: positions whose next token carries loss."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    predicts: torch.Tensor

    def targets(self) -> torch.Tensor:
        """Next tokens of the predicting positions [N], in row order."""
        return self.input_ids.roll(-1, dims=1)[self.predicts]


def pad_rows(rows: Sequence[dict[str, Any]], pad_id: int) -> Batch:
    """Right-pad rows of `input_ids` and `loss_mask` (equal lengths per row) to the longest of them."""
    longest = max(len(row["input_ids"]) for row in rows)
    input_ids = torch.full((len(rows), longest), pad_id)
    attention = torch.zeros((len(rows), longest), dtype=torch.long)
    predicts = torch.zeros((len(rows), longest), dtype=torch.bool)
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        input_ids[index, :length] = torch.tensor(row["input_ids"])
        attention[index, :length] = 1
        predicts[index, : length - 1] = torch.tensor(row["loss_mask"][1:], dtype=torch.bool)
    return Batch(input_ids, attention, predicts)


def hidden_states(model: Any, batch: Batch) -> torch.Tensor:
    """Last hidden states [N, D] at the predicting positions of a batch, in row order.

    No attention mask is passed: rows are padded on the right, where a causal model's real positions do not look, and without a
    mask attention takes its fastest kernel. The positions are found on the host, so that nothing waits for the accelerator.
    """
    device = next(model.parameters()).device
    body = model.model(input_ids=batch.input_ids.to(device), use_cache=False)
    states: torch.Tensor = body.last_hidden_state.flatten(0, 1)  # a spread model ends on another device than it begins on
    return states[batch.predicts.flatten().nonzero()[:, 0].to(states.device)]


def by_length(rows: Sequence[Row], size: int, length: Any) -> list[list[Row]]:
    """Batches of up to `size` rows of similar `length(row)`, longest first (so that memory fails early)."""
    ordered = sorted(rows, key=length, reverse=True)
    return [ordered[begin : begin + size] for begin in range(0, len(ordered), size)]


def in_batches(batches: Sequence[list[Row]], work: Callable[[list[Row]], Result]) -> Iterator[tuple[list[Row], Result]]:
    """Yield each batch with what `work` makes of it.

    When memory runs out the batch is halved, which is said; one row that does not fit alone raises.
    """
    todo = list(batches)
    while todo:
        batch = todo.pop(0)
        try:
            result = work(batch)
        except (torch.OutOfMemoryError, MemoryError):
            if len(batch) == 1:
                raise
            half = len(batch) // 2
            print(f"out of memory with {len(batch)} rows per batch: going on with {half}")
            todo[:0] = [batch[:half], batch[half:]]
            continue
        yield batch, result
