"""The peer side of the speed table, written plainly: what a researcher would otherwise run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars, load_from_disk

from workflow_scripts.distill.batching import pad_rows

disable_progress_bars()


def dense_loss(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, teacher_logits: torch.Tensor, alpha: float
) -> torch.Tensor:
    """Alpha CE + (1 - alpha) KL at T = 1 from all logits [N, V] of teacher and student, in plain torch."""
    logits = (hidden @ weight.t()).float()
    ce = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    log_p, log_s = torch.log_softmax(teacher_logits, -1), torch.log_softmax(logits, -1)
    kl = torch.nn.functional.kl_div(log_s, log_p, log_target=True, reduction="sum")
    return alpha * ce + (1 - alpha) * kl


def write_lists(folder: Path, ids: torch.Tensor, logits: torch.Tensor) -> None:
    """The first system's cache: a data set made of Python lists, a row per example ([examples, positions, k])."""
    rows = [{"indices": i.tolist(), "values": v.tolist()} for i, v in zip(ids, logits, strict=True)]
    Dataset.from_list(rows).save_to_disk(folder)


def read_lists(folder: Path, order: Sequence[int]) -> int:
    """Read its rows in the given order into tensors; returns the positions read."""
    data = load_from_disk(folder)
    return sum(len(torch.tensor(data[i]["indices"])) + 0 * len(torch.tensor(data[i]["values"])) for i in order)


@torch.no_grad()
def generate_one_by_one(model: Any, prompts: Sequence[list[int]], new_tokens: int, pad_id: int) -> int:
    """`generate` for one prompt at a time, greedy; returns the tokens generated."""
    made = 0
    for prompt in prompts:
        ids = torch.tensor([prompt], device=_device(model))
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False, pad_token_id=pad_id
        )
        made += output.shape[1] - len(prompt)
    return made


@torch.no_grad()
def score_one_by_one(model: Any, rows: Sequence[dict[str, Any]]) -> list[float]:
    """Log-likelihood of each row's loss tokens from log-softmax over the vocabulary at every position, one row at a time."""
    found = []
    for row in rows:
        ids = torch.tensor([row["input_ids"]], device=_device(model))
        log_p = torch.log_softmax(model(input_ids=ids, use_cache=False).logits.float(), -1)
        chosen = log_p[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        found.append((chosen * torch.tensor(row["loss_mask"][1:], device=chosen.device)).sum().item())
    return found


@torch.no_grad()
def bare_forward(model: Any, rows: Sequence[dict[str, Any]], pad_id: int) -> None:
    """Backbone and output embedding over a batch of rows; nothing is kept."""
    batch, device = pad_rows(rows, pad_id), _device(model)
    model(input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device), use_cache=False)


@torch.no_grad()
def first_system_cache(
    model: Any, rows: Sequence[dict[str, Any]], folder: Path, length: int, pad_id: int, k: int = 100
) -> None:
    """The first system's caching: rows padded to `length`, log-softmax over all positions, top 100 as Python lists."""
    found = []
    for row in padded(rows, length, pad_id):
        ids = torch.tensor([row["input_ids"]], device=_device(model))
        mask = torch.tensor([row["attention_mask"]], device=ids.device)
        log_p = torch.log_softmax(model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float(), -1)
        top = torch.topk(log_p[0], k)
        found.append({"indices": top.indices.tolist(), "values": top.values.tolist()})
    Dataset.from_list(found).save_to_disk(folder)


class FirstSystemTraining:
    """The first system's KD loop: rows padded to `length`, all logits, KL over the top 100 with no tail, token sums, clip 1."""

    def __init__(self, model: Any, dtype: torch.dtype, length: int, pad_id: int, k: int = 100) -> None:
        self._model, self._dtype, self._length, self._pad_id, self._k = model.train(), dtype, length, pad_id, k
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step(self, rows: Sequence[dict[str, Any]]) -> float:
        """One batch and one update; the teacher's figures are made up, reading them costs nothing here."""
        device = _device(self._model)
        full = padded(rows, self._length, self._pad_id)
        ids, mask, loss_mask = (
            torch.tensor([row[name] for row in full], device=device) for name in ("input_ids", "attention_mask", "loss_mask")
        )
        top = torch.randint(self._model.config.vocab_size, (*ids.shape, self._k), device=device)
        log_p = torch.log_softmax(torch.randn(*ids.shape, self._k, device=device), -1)
        with torch.autocast(device.type, dtype=self._dtype, enabled=self._dtype is not torch.float32):
            logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        log_s = torch.log_softmax(logits.float(), -1)
        kl = (log_p.exp() * (log_p - log_s.gather(2, top))).sum(-1)[:, :-1]
        ce = -log_s[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
        loss = ((0.5 * ce + 0.5 * kl) * loss_mask[:, 1:]).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.item()


def _device(model: Any) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device


def padded(rows: Sequence[dict[str, Any]], length: int, pad_id: int) -> list[dict[str, Any]]:
    """The rows filled up to `length` without loss, as systems do that pad on disk."""
    return [
        row
        | {
            "input_ids": row["input_ids"] + [pad_id] * (length - len(row["input_ids"])),
            "loss_mask": row["loss_mask"] + [0] * (length - len(row["loss_mask"])),
            "attention_mask": [1] * len(row["input_ids"]) + [0] * (length - len(row["input_ids"])),
        }
        for row in rows
    ]
