"""A teacher known by random draws from its distribution: unbiased distillation at about 40 bytes per position.

Per position and temperature T, N tokens are drawn from softmax(z / T) and kept as distinct ids with counts; count / N is an
unbiased estimate of every token's probability (Anshumann et al. 2025, "Sparse Logit Sampling"). Each example has random numbers
of its own, the same for all temperatures, so what is drawn depends neither on its batch nor on its shard.

An entry is 3 bytes: the low 16 bits of the id (`ids`, uint16), and its 17th bit with a count from 1 to 127 (`counts`, uint8); a
larger count takes several entries. A vocabulary above 131,072 adds a byte with the bits above (`ids_high`, uint8). A position
adds its number of entries (uint16) and the distribution's entropy [nats] (float16). A draw is good for its own T only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from workflow_scripts.distill.losses import SparseTeacher

_LOW_BITS = 1 << 16
_MOST = 127
_HIGH_ID = 128
_NO_LOG = -1e4  # below the logarithm of any float32: 0 log 0 is 0


@dataclass(frozen=True)
class Draws:
    """Draws at P positions for one temperature.

    `ids`, `counts` [E] int64 in the order of positions, `entries` [P] how many of them each position has, `entropy` [P] of the
    teacher [nats].
    """

    ids: torch.Tensor
    counts: torch.Tensor
    entries: torch.Tensor
    entropy: torch.Tensor

    @staticmethod
    def join(pieces: Sequence[Draws]) -> Draws:
        """Concatenate by position."""
        names = ("ids", "counts", "entries", "entropy")
        return Draws(*(torch.cat([getattr(piece, name) for piece in pieces]) for name in names))

    def teacher(self, draws: int, temperature: float, width: int) -> SparseTeacher:
        """The distribution count / draws at each position, `width` columns; logits are T log(count / draws)."""
        row = torch.repeat_interleave(torch.arange(len(self.entries)), self.entries)
        column = torch.arange(len(self.ids)) - torch.repeat_interleave(self.entries.cumsum(0) - self.entries, self.entries)
        ids = torch.zeros(len(self.entries), width, dtype=torch.int64)
        logits = torch.full((len(self.entries), width), -torch.inf)
        ids[row, column] = self.ids
        logits[row, column] = temperature * torch.log(self.counts.float() / draws)
        nothing_else = torch.full((len(self.entries),), -torch.inf)
        return SparseTeacher(ids, logits, nothing_else, self.entropy.float())


@dataclass(frozen=True)
class DrawnShard:
    """Draws of some examples: positions per example id, and draws per temperature."""

    example_ids: list[int]
    positions: list[int]
    draws: list[Draws]

    def tensors(self, vocab_size: int) -> dict[str, torch.Tensor]:
        """What a shard file holds besides `example_ids` and `positions`; `.0`, `.1` … are the temperatures."""
        found: dict[str, torch.Tensor] = {}
        for number, drawn in enumerate(self.draws):
            by_example = torch.stack([part.sum() for part in drawn.entries.split(self.positions)])
            found |= {
                f"ids.{number}": (drawn.ids % _LOW_BITS).to(torch.uint16),
                f"counts.{number}": (drawn.counts + _HIGH_ID * (drawn.ids // _LOW_BITS % 2)).to(torch.uint8),
                f"entries.{number}": drawn.entries.to(torch.uint16),
                f"entropy.{number}": drawn.entropy.half(),
                **(
                    {f"ids_high.{number}": (drawn.ids // (2 * _LOW_BITS)).to(torch.uint8)} if vocab_size > 2 * _LOW_BITS else {}
                ),
                f"entries_per_example.{number}": by_example,
            }
        return found

    @staticmethod
    def join(shards: Sequence[DrawnShard]) -> DrawnShard:
        """Concatenate by example."""
        return DrawnShard(
            example_ids=[i for s in shards for i in s.example_ids],
            positions=[n for s in shards for n in s.positions],
            draws=[Draws.join(pieces) for pieces in zip(*(s.draws for s in shards), strict=True)],
        )

    def quality(self, temperatures: Sequence[float]) -> dict[str, dict[str, float]]:
        """Mean entries per position at each temperature."""
        return {"entries": {str(t): d.entries.double().mean().item() for t, d in zip(temperatures, self.draws, strict=True)}}

    def width(self) -> int:
        """Most entries of a position."""
        return max(int(drawn.entries.max()) for drawn in self.draws)


def read_draws(handle: Any, number: int, positions: slice, entries: slice) -> Draws:
    """Draws of the `number`-th temperature at some positions of an open shard, whose entries are known."""
    counts = handle.get_slice(f"counts.{number}")[entries].to(torch.int64)
    ids = handle.get_slice(f"ids.{number}")[entries].to(torch.int64)
    if f"ids_high.{number}" in handle.keys():  # noqa: SIM118  (a safetensors handle is no mapping)
        ids += handle.get_slice(f"ids_high.{number}")[entries].to(torch.int64) * (2 * _LOW_BITS)
    return Draws(
        ids=ids + torch.where(counts >= _HIGH_ID, _LOW_BITS, 0),
        counts=counts % _HIGH_ID,
        entries=handle.get_slice(f"entries.{number}")[positions].to(torch.int64),
        entropy=handle.get_slice(f"entropy.{number}")[positions],
    )


def draw(logits: torch.Tensor, uniform: torch.Tensor, temperature: float) -> Draws:
    """Draw tokens from softmax(logits / T) by inverting its cumulative distribution.

    logits [n, V] float32, uniform [n, N] float64 in [0, 1). The result lies on the CPU.
    """
    log_p = torch.log_softmax(logits if temperature == 1 else logits / temperature, -1)
    p = log_p.exp()
    entropy = -torch.linalg.vecdot(p, log_p.clamp_(min=_NO_LOG))
    cumulative = p.cumsum(-1, dtype=torch.float64)
    tokens = torch.searchsorted(cumulative, uniform.to(logits.device) * cumulative[:, -1:], right=True)
    tokens.clamp_(max=logits.shape[-1] - 1)
    keys = tokens.sort(-1).values + logits.shape[-1] * torch.arange(len(logits), device=logits.device)[:, None]
    distinct, counts = torch.unique_consecutive(keys.reshape(-1), return_counts=True)
    distinct, counts = distinct.cpu(), counts.cpu()
    times = (counts + _MOST - 1) // _MOST  # entries that a count takes
    which = torch.repeat_interleave(torch.arange(len(counts)), times)
    nth = torch.arange(len(which)) - torch.repeat_interleave(times.cumsum(0) - times, times)
    row = distinct // logits.shape[-1]
    entries = torch.zeros(len(logits), dtype=torch.int64).index_add_(0, row, times)
    part = (counts[which] - nth * _MOST).clamp(max=_MOST)
    return Draws(distinct[which] % logits.shape[-1], part, entries, entropy.cpu())


def uniforms(seeds: Sequence[int], positions: Sequence[int], draws: int) -> torch.Tensor:
    """Random numbers [sum of positions, draws] float64, each example's from its own seed."""
    rows = [
        torch.rand(count, draws, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for seed, count in zip(seeds, positions, strict=True)
    ]
    return torch.cat(rows)


def draw_all(chunks: Iterator[torch.Tensor], uniform: torch.Tensor, temperatures: Sequence[float]) -> list[Draws]:
    """Draws at all temperatures from chunks of logits [n, V], whose rows together match those of `uniform`."""
    pieces: list[list[Draws]] = [[] for _ in temperatures]
    begin = 0
    for z in chunks:
        part = uniform[begin : begin + len(z)]
        begin += len(z)
        for found, temperature in zip(pieces, temperatures, strict=True):
            found.append(draw(z, part, temperature))
    return [Draws.join(found) for found in pieces]
