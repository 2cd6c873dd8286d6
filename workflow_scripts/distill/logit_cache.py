"""The teacher's logits on disk, in shards of examples: top k per completion position, or random draws (random_draws.py).

A position of the cache is a token that carries loss: row i of an example predicts the i-th loss token, from the hidden
state one token before it. Of the top k, per position: ids (uint16, plus one packed bit when the vocabulary exceeds 65,536, or
plus a byte when it exceeds 131,072), raw logits in the teacher's type (bfloat16 or float32, so nothing is lost) and
for each temperature of the cache the logsumexp of z / T over all other tokens (float32): that of all follows from it, and what
is left to the others has all its digits, however little it is. Examples are found by id, never by order. The manifest names the
format.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from workflow_scripts.artefact import LOGIT_FORMATS, sha256
from workflow_scripts.distill.batching import Batch, hidden_states, pad_rows
from workflow_scripts.distill.losses import SparseTeacher
from workflow_scripts.distill.random_draws import DrawnShard, draw_all, read_draws, uniforms
from workflow_scripts.distill.seeds import prompt_seed
from workflow_scripts.errors import UserError

_LOW_BITS = 1 << 16
MAX_VOCABULARY = 1 << 24


class CacheError(UserError):
    """A logit cache that does not fit what is asked of it."""


@dataclass(frozen=True)
class Shard:
    """Top-k logits of some examples: `ids` and `logits` [P, k], `rest` [P, temperatures], positions per example id."""

    example_ids: list[int]
    positions: list[int]
    ids: torch.Tensor
    logits: torch.Tensor
    rest: torch.Tensor

    def tensors(self, vocab_size: int) -> dict[str, torch.Tensor]:
        """What a shard file holds besides `example_ids` and `positions`."""
        found = {
            "ids": (self.ids % _LOW_BITS).to(torch.uint16),
            "logits": self.logits.contiguous(),
            "rest": self.rest.float().contiguous(),
        }
        if vocab_size > 2 * _LOW_BITS:
            found["ids_high_byte"] = (self.ids // _LOW_BITS).to(torch.uint8)
        elif vocab_size > _LOW_BITS:
            high = (self.ids >= _LOW_BITS).numpy().astype(np.uint8)
            found["ids_high"] = torch.from_numpy(np.packbits(high.reshape(-1)))
        return found

    @staticmethod
    def join(shards: Sequence[Shard]) -> Shard:
        """Concatenate by example, on the host."""
        return Shard(
            example_ids=[i for s in shards for i in s.example_ids],
            positions=[n for s in shards for n in s.positions],
            ids=torch.cat([s.ids for s in shards]).cpu(),
            logits=torch.cat([s.logits for s in shards]).cpu(),
            rest=torch.cat([s.rest for s in shards]).cpu(),
        )

    def quality(self, temperatures: Sequence[float]) -> dict[str, dict[str, float]]:
        """Mean probability mass inside the top k at each temperature, from what the shard stores."""
        z = self.logits.float()
        mass = {
            str(t): torch.sigmoid(torch.logsumexp(z / t, -1) - self.rest[:, column]).mean().item()
            for column, t in enumerate(temperatures)
        }
        return {"retained_mass": mass}

    def width(self) -> int:
        """Logits per position: k."""
        return self.ids.shape[1]


def write_shard(path: Path, shard: Shard | DrawnShard, vocab_size: int) -> None:
    """Write a shard under a temporary name, then rename it."""
    if vocab_size > MAX_VOCABULARY:
        raise CacheError(f"vocabulary of {vocab_size} tokens: the cache stores ids below {MAX_VOCABULARY}")
    tensors = shard.tensors(vocab_size) | {
        "example_ids": torch.tensor(shard.example_ids, dtype=torch.int64),
        "positions": torch.tensor(shard.positions, dtype=torch.int64),
    }
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary)
    temporary.replace(path)


@dataclass(frozen=True)
class _Place:
    """Where an example is: its shard's file, its positions there, and its entries at each temperature (draws only)."""

    file: str
    positions: slice
    entries: tuple[slice, ...] = ()


class LogitCache:
    """Read access to a published cache by example id. Raises CacheError when it does not fit the question."""

    def __init__(self, folder: Path, facts: dict[str, Any], verify: bool = True) -> None:
        self._facts = facts
        self._folder = folder
        self._where: dict[int, _Place] = {}
        self._open: dict[str, Any] = {}
        made = facts.get("format")
        if made not in LOGIT_FORMATS.values():
            raise CacheError(f"{folder}: format {made!r} is none of {sorted(LOGIT_FORMATS.values())}: rebuild the cache")
        self._drawn = made == LOGIT_FORMATS["random"]
        for entry in facts["shards"]:
            path = folder / entry["file"]
            if verify and sha256(path) != facts["files"][entry["file"]]["sha256"]:
                raise CacheError(f"{path} has a wrong checksum: delete the cache's manifest and run again")
            with safe_open(path, framework="pt") as handle:
                self._index(entry["file"], handle)

    def _index(self, file: str, handle: Any) -> None:
        """Remember where the examples of a shard are."""
        examples = handle.get_tensor("example_ids").tolist()
        positions = _slices(handle.get_tensor("positions"))
        columns = range(len(self._facts["temperatures"]) if self._drawn else 0)
        entries = [_slices(handle.get_tensor(f"entries_per_example.{column}")) for column in columns]
        for number, (example, part) in enumerate(zip(examples, positions, strict=True)):
            self._where[example] = _Place(file, part, tuple(column[number] for column in entries))

    def check(self, expected: dict[str, Any], temperature: float) -> None:
        """Refuse a cache made from something else than `expected` (facts of the manifest) or for other temperatures."""
        for fact, theirs in expected.items():
            mine = self._facts.get(fact)
            if mine != theirs:
                shown = [value[:12] if isinstance(value, str) else value for value in (mine, theirs)]
                raise CacheError(f"{self._folder}: made with {fact} = {shown[0]}, asked for {shown[1]}: rebuild the cache")
        self._temperature_column(temperature)

    def _temperature_column(self, temperature: float) -> int:
        made_for: list[float] = self._facts["temperatures"]
        if temperature not in made_for:
            raise CacheError(
                f"distillation.temperature = {temperature}, but the cache at {self._folder} was made for {made_for}: "
                "rebuild it or choose one of these"
            )
        return made_for.index(temperature)

    def teacher(self, example_id: int, temperature: float, positions: int) -> SparseTeacher:
        """The teacher at the loss positions of one example. `positions` must be the example's number of loss tokens."""
        column = self._temperature_column(temperature)
        if example_id not in self._where:
            raise CacheError(f"{self._folder}: example {example_id} is not in the cache: it was made for another corpus")
        place = self._where[example_id]
        count = place.positions.stop - place.positions.start
        if count != positions:
            raise CacheError(f"{self._folder}: example {example_id} has {count} cached positions, but {positions} loss tokens")
        if place.file not in self._open:
            self._open[place.file] = safe_open(self._folder / place.file, framework="pt")
        handle = self._open[place.file]
        if self._drawn:
            drawn = read_draws(handle, column, place.positions, place.entries[column])
            return drawn.teacher(self._facts["draws"], temperature, self._facts["k"])
        ids = handle.get_slice("ids")[place.positions].to(torch.int64)
        if "ids_high_byte" in handle.keys():  # noqa: SIM118  (a safetensors handle is no mapping)
            ids = ids + handle.get_slice("ids_high_byte")[place.positions].to(torch.int64) * _LOW_BITS
        elif "ids_high" in handle.keys():  # noqa: SIM118
            ids = ids + self._high_bits(handle, place.positions.start, place.positions.stop, ids.shape[1])
        logits = handle.get_slice("logits")[place.positions].float()
        return SparseTeacher(ids, logits, handle.get_slice("rest")[place.positions][:, column].clone())

    def nothing(self) -> SparseTeacher:
        """The teacher at no position, for a batch without loss."""
        k, none = self._facts["k"], torch.empty(0)
        return SparseTeacher(torch.empty(0, k, dtype=torch.int64), torch.empty(0, k), none, none if self._drawn else None)

    @staticmethod
    def _high_bits(handle: Any, begin: int, end: int, k: int) -> torch.Tensor:
        first, last = begin * k, end * k
        packed = handle.get_slice("ids_high")[first // 8 : (last + 7) // 8].numpy()
        bits = np.unpackbits(packed)[first % 8 : first % 8 + last - first]
        return torch.from_numpy(bits.astype(np.int64)).reshape(-1, k) * _LOW_BITS


def _slices(counts: torch.Tensor) -> list[slice]:
    """Consecutive slices of the given lengths."""
    ends = list(itertools.accumulate(counts.tolist(), initial=0))
    return [slice(begin, end) for begin, end in itertools.pairwise(ends)]


def _logits(model: Any, batch: Batch, vocabulary: int, chunk: int) -> Iterator[torch.Tensor]:
    """Logits [n, vocabulary] float32 at the loss positions of a batch, `chunk` positions at a time.

    Only these pass the output embedding, whose rows beyond the tokenizer's `vocabulary` are padding and left out.
    """
    for part in hidden_states(model, batch).split(chunk):
        yield model.lm_head(part)[:, :vocabulary].float()


@torch.no_grad()
def teacher_rows(
    model: Any,
    rows: list[dict[str, Any]],
    k: int,
    temperatures: list[float],
    pad_id: int,
    vocabulary: int,
    chunk: int = 512,
) -> Shard:
    """Forward the teacher over tokenised rows (`example_id`, `input_ids`, `loss_mask`) and keep the top k.

    Logits keep the teacher's type. The result stays on the accelerator, so that the next batch can be queued behind this one;
    `Shard.join` brings it to the host.
    """
    dtype = next(model.parameters()).dtype
    batch = pad_rows(rows, pad_id)
    found = [top_and_rest(z, k, temperatures) for z in _logits(model, batch, vocabulary, chunk)]
    logits, ids, rest = (torch.cat(each) for each in zip(*found, strict=True))
    return Shard(
        example_ids=[row["example_id"] for row in rows],
        positions=batch.predicts.sum(1).tolist(),
        ids=ids,
        logits=logits.to(dtype),
        rest=rest,
    )


def top_and_rest(z: torch.Tensor, k: int, temperatures: list[float]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The k highest logits of each row [n, V] and their ids, [n, k], and the logsumexp of the others at each temperature.

    Overwrites `z`.
    """
    found = torch.topk(z, min(k + 1, z.shape[-1]), dim=-1)  # the next one is the highest of the others
    ids = found.indices[:, :k]
    return found.values[:, :k], ids, _log_sums(z.scatter_(1, ids, -torch.inf), found.values[:, -1], temperatures)


def _log_sums(z: torch.Tensor, highest: torch.Tensor, temperatures: list[float]) -> torch.Tensor:
    """logsumexp(z / T) [n, temperatures] of logits [n, V] whose maxima are known; overwrites `z` at T = 1, which comes last."""
    columns: dict[float, torch.Tensor] = {}
    for t in sorted(temperatures, key=lambda t: t == 1):
        scaled, high = (z, highest) if t == 1 else (z / t, highest / t)
        columns[t] = scaled.sub_(high[:, None]).exp_().sum(-1).log_().add_(high)
    return torch.stack([columns[t] for t in temperatures], dim=1)


@torch.no_grad()
def drawn_rows(
    model: Any,
    rows: list[dict[str, Any]],
    draws: int,
    seed: int,
    temperatures: list[float],
    pad_id: int,
    vocabulary: int,
    chunk: int = 512,
) -> DrawnShard:
    """Forward the teacher over tokenised rows and keep `draws` random tokens per position and temperature."""
    batch = pad_rows(rows, pad_id)
    positions = batch.predicts.sum(1).tolist()
    uniform = uniforms([prompt_seed(seed, row["example_id"]) for row in rows], positions, draws)
    return DrawnShard(
        example_ids=[row["example_id"] for row in rows],
        positions=positions,
        draws=draw_all(_logits(model, batch, vocabulary, chunk), uniform, temperatures),
    )
