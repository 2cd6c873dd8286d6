"""The teacher's logits on disk: top k per completion position, in shards of examples.

A position of the cache is a token that carries loss: row i of an example predicts the i-th loss token, from the hidden
state one token before it. Per position: ids (uint16, plus one packed bit when the vocabulary exceeds 65,536), raw logits in
the teacher's type (bfloat16 or float32, so nothing is lost) and logsumexp(z / T) (float32) for each temperature of the
cache. Examples are found by id, never by order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from workflow_scripts.artefact import sha256
from workflow_scripts.distill.batching import pad_rows
from workflow_scripts.distill.losses import SparseTeacher

_LOW_BITS = 1 << 16
MAX_VOCABULARY = 2 * _LOW_BITS


class CacheError(ValueError):
    """A logit cache that does not fit what is asked of it."""


@dataclass(frozen=True)
class Shard:
    """Logits of some examples: `ids` and `logits` [P, k], `lse` [P, temperatures], positions per example id."""

    example_ids: list[int]
    positions: list[int]
    ids: torch.Tensor
    logits: torch.Tensor
    lse: torch.Tensor


def write_shard(path: Path, shard: Shard, vocab_size: int) -> None:
    """Write a shard under a temporary name, then rename it."""
    tensors = {
        "ids": (shard.ids % _LOW_BITS).to(torch.uint16),
        "logits": shard.logits.contiguous(),
        "lse": shard.lse.float().contiguous(),
        "example_ids": torch.tensor(shard.example_ids, dtype=torch.int64),
        "positions": torch.tensor(shard.positions, dtype=torch.int64),
    }
    if vocab_size > MAX_VOCABULARY:
        raise CacheError(f"vocabulary of {vocab_size} tokens: the cache stores ids below {MAX_VOCABULARY}")
    if vocab_size > _LOW_BITS:
        high = (shard.ids >= _LOW_BITS).numpy().astype(np.uint8)
        tensors["ids_high"] = torch.from_numpy(np.packbits(high.reshape(-1)))
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary)
    temporary.replace(path)


class LogitCache:
    """Read access to a published cache by example id. Raises CacheError when it does not fit the question."""

    def __init__(self, folder: Path, facts: dict[str, Any], verify: bool = True) -> None:
        self._facts = facts
        self._folder = folder
        self._where: dict[int, tuple[str, int, int]] = {}
        self._open: dict[str, Any] = {}
        for entry in facts["shards"]:
            path = folder / entry["file"]
            if verify and sha256(path) != facts["files"][entry["file"]]["sha256"]:
                raise CacheError(f"{path} has a wrong checksum: delete the cache's manifest and run again")
            with safe_open(path, framework="pt") as handle:
                offset = 0
                positions = handle.get_tensor("positions").tolist()
                for example, count in zip(handle.get_tensor("example_ids").tolist(), positions, strict=True):
                    self._where[example] = (entry["file"], offset, count)
                    offset += count

    def check(self, corpus_sha256: str, tokenizer_sha256: str, temperature: float) -> None:
        """Refuse a cache made for another corpus, tokenizer or temperature."""
        for what, mine, theirs in (
            ("corpus", self._facts["corpus_sha256"], corpus_sha256),
            ("tokenizer", self._facts["tokenizer_sha256"], tokenizer_sha256),
        ):
            if mine != theirs:
                raise CacheError(f"{self._folder}: made for {what} {mine[:12]}, asked for {theirs[:12]}: rebuild the cache")
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
        file, begin, count = self._where[example_id]
        if count != positions:
            raise CacheError(f"{self._folder}: example {example_id} has {count} cached positions, but {positions} loss tokens")
        if file not in self._open:
            self._open[file] = safe_open(self._folder / file, framework="pt")
        handle = self._open[file]
        end = begin + count
        ids = handle.get_slice("ids")[begin:end].to(torch.int64)
        if "ids_high" in handle.keys():  # noqa: SIM118  (a safetensors handle is no mapping)
            ids = ids + self._high_bits(handle, begin, end, ids.shape[1])
        logits = handle.get_slice("logits")[begin:end].float()
        return SparseTeacher(ids, logits, handle.get_slice("lse")[begin:end][:, column].clone())

    def nothing(self) -> SparseTeacher:
        """The teacher at no position, for a batch without loss."""
        return SparseTeacher(
            torch.empty(0, self._facts["k"], dtype=torch.int64), torch.empty(0, self._facts["k"]), torch.empty(0)
        )

    @staticmethod
    def _high_bits(handle: Any, begin: int, end: int, k: int) -> torch.Tensor:
        first, last = begin * k, end * k
        packed = handle.get_slice("ids_high")[first // 8 : (last + 7) // 8].numpy()
        bits = np.unpackbits(packed)[first % 8 : first % 8 + last - first]
        return torch.from_numpy(bits.astype(np.int64)).reshape(-1, k) * _LOW_BITS


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

    Only loss positions pass the output embedding, in chunks of `chunk` positions. Rows of the embedding beyond the
    tokenizer's `vocabulary` are padding and left out. Logits keep the teacher's type.
    """
    batch = pad_rows(rows, pad_id).to(next(model.parameters()).device)
    body = model.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    hidden = batch.predicting(body.last_hidden_state)
    ids, logits, lse = [], [], []
    for part in hidden.split(chunk):
        z = model.lm_head(part)[:, :vocabulary].float()
        top = torch.topk(z, k, dim=-1)
        ids.append(top.indices.cpu())
        logits.append(top.values.to(hidden.dtype).cpu())
        lse.append(torch.stack([torch.logsumexp(z / t, -1) for t in temperatures], dim=1).cpu())
    return Shard(
        example_ids=[row["example_id"] for row in rows],
        positions=batch.predicts.sum(1).tolist(),
        ids=torch.cat(ids),
        logits=torch.cat(logits),
        lse=torch.cat(lse),
    )


def join(shards: list[Shard]) -> Shard:
    """Concatenate shards."""
    return Shard(
        example_ids=[i for s in shards for i in s.example_ids],
        positions=[n for s in shards for n in s.positions],
        ids=torch.cat([s.ids for s in shards]),
        logits=torch.cat([s.logits for s in shards]),
        lse=torch.cat([s.lse for s in shards]),
    )


def retained_mass(shard: Shard, temperatures: list[float]) -> dict[str, float]:
    """Mean probability mass inside the top k at each temperature, from what the shard stores."""
    z = shard.logits.float()
    return {
        str(t): torch.exp(torch.logsumexp(z / t, -1) - shard.lse[:, column]).clamp(max=1).mean().item()
        for column, t in enumerate(temperatures)
    }
