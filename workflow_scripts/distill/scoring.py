"""Log-likelihoods and agreement of models on given text, without ever holding all logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from workflow_scripts.distill.batching import hidden_states, pad_rows


@torch.no_grad()
def log_likelihoods(model: Any, rows: Sequence[dict[str, Any]], pad_id: int, chunk: int = 512) -> list[float]:
    """Sum of log p(token) over the loss tokens of each row [nats], given everything before them."""
    batch = pad_rows(rows, pad_id)
    states = hidden_states(model, batch)
    targets = batch.targets().to(states.device)
    parts = []
    for begin in range(0, len(targets), chunk):
        logits = model.lm_head(states[begin : begin + chunk]).float()
        chosen = logits.gather(1, targets[begin : begin + chunk, None])[:, 0]
        parts.append(chosen - torch.logsumexp(logits, -1))
    counts = batch.predicts.sum(1).tolist()
    return [part.double().sum().item() for part in torch.cat(parts).cpu().split(counts)]


@dataclass(frozen=True)
class Agreement:
    """Sums over a row's loss tokens: negative log-likelihood, KL(teacher || model) [nats], equal argmax; and their number."""

    negative_log_likelihood: float
    kl_to_teacher: float
    same_argmax: int
    tokens: int


@torch.no_grad()
def agreements(
    model: Any, teacher: Any | None, rows: Sequence[dict[str, Any]], pad_id: int, vocabulary: int, chunk: int = 256
) -> list[Agreement]:
    """A batch of rows, row by row. Embeddings padded beyond the tokenizer's `vocabulary` are cut off.

    The teacher itself, as the model, is computed once; without a teacher its sums mean nothing.
    """
    batch = pad_rows(rows, pad_id)
    mine = hidden_states(model, batch)
    other = mine if teacher is model or teacher is None else hidden_states(teacher, batch)
    targets = batch.targets().to(mine.device)
    parts = []
    for begin in range(0, len(targets), chunk):
        part = slice(begin, begin + chunk)
        log_s = torch.log_softmax(model.lm_head(mine[part])[:, :vocabulary].float(), -1)
        log_p = log_s
        if teacher is not model and teacher is not None:
            log_p = torch.log_softmax(teacher.lm_head(other[part])[:, :vocabulary].float(), -1).to(log_s.device)
        loss = -log_s.gather(1, targets[part, None])[:, 0]
        divergence = torch.nn.functional.kl_div(log_s, log_p, log_target=True, reduction="none").sum(-1)
        parts.append(torch.stack([loss, divergence, (log_s.argmax(-1) == log_p.argmax(-1)).float()]).double().cpu())
    counts = batch.predicts.sum(1).tolist()
    sums = [part.sum(1).tolist() for part in torch.cat(parts, dim=1).split(counts, dim=1)]
    return [Agreement(loss, kl, int(same), n) for (loss, kl, same), n in zip(sums, counts, strict=True)]
