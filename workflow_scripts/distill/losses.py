"""Cross entropy and sparse-teacher KL from one pass over the vocabulary, in chunks.

The teacher is known by its top-k raw logits z_i at ids i and by logsumexp(z / T) over the full vocabulary, so its
probabilities at temperature T are p_i = exp(z_i / T - lse_T) and the mass outside the top k is 1 - sum p_i. With s the
student's softmax at T, the loss of one position with target y is

    alpha * CE(y, softmax(logits)) + (1 - alpha) * T^2 * KL(p || s)            (Hinton et al. 2015, eq. 4)

and the mass outside the top k is handled by `tail`:
    ghost        one extra bucket on both sides: + (1 - sum p) * log((1 - sum p) / (1 - sum s_i))
    renormalise  p_i are divided by their sum
    zero         the sum runs over the top k only; its minimum is not the teacher (for comparison with other systems)

A teacher known by random draws has p_i = count_i / draws instead, which sums to one, so that no tail is left and every `tail`
gives the same. The gradient is linear in p, so its expectation over draws is the gradient of the full KL (Anshumann et al.
2025, "Sparse Logit Sampling"). The value is not linear: sum p log p is too large by about (unique - 1) / (2 draws), so the
teacher's exact entropy, kept with the draws, takes its place and the value is unbiased, too (it may be negative by chance).

`FusedDistillationLoss` never holds the logits of all positions: per chunk of rows it forms logits = h W^T, the loss, and
at once the gradients of h and W, so that the backward pass only scales them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from workflow_scripts.settings.distillation import Distillation

Tail = Literal["ghost", "renormalise", "zero"]
_TINY = 1e-9


@dataclass(frozen=True)
class KdLoss:
    """Weights and temperature of the loss; random draws leave no tail, it is `zero` then."""

    alpha: float
    temperature: float
    tail: Tail

    @classmethod
    def of(cls, options: Distillation) -> KdLoss:
        """From the settings."""
        return cls(options.alpha, options.temperature, options.tail if options.sampling == "top_k" else "zero")


@dataclass(frozen=True)
class SparseTeacher:
    """Teacher distribution at N positions: ids [N, k] int64, logits [N, k] float32, lse [N] = logsumexp(z / T).

    `entropy` [N] of the full distribution at T [nats] is there when the teacher is known by random draws; an id may then stand
    in several columns, and a logit of -inf fills a row up.
    """

    ids: torch.Tensor
    logits: torch.Tensor
    lse: torch.Tensor
    entropy: torch.Tensor | None = None

    def probabilities(self, temperature: float, tail: Tail) -> torch.Tensor:
        """Top-k probabilities [N, k] at `temperature`, divided by their sum for tail `renormalise`."""
        p = torch.exp(self.logits / temperature - self.lse[:, None]).clamp(max=1.0)
        return p / p.sum(-1, keepdim=True) if tail == "renormalise" else p

    def rows(self, part: slice) -> SparseTeacher:
        """The positions `part`."""
        entropy = None if self.entropy is None else self.entropy[part]
        return SparseTeacher(self.ids[part], self.logits[part], self.lse[part], entropy)

    def negative_entropy(self, p: torch.Tensor) -> torch.Tensor:
        """Sum of p log p over ids and positions: of the probabilities `p` [N, k], or the exact one kept with draws."""
        return torch.xlogy(p, p).sum() if self.entropy is None else -self.entropy.sum()


@dataclass(frozen=True)
class LossTerms:
    """Sums over positions: the total loss (differentiable), cross entropy and KL (T^2 included), both detached."""

    total: torch.Tensor
    cross_entropy: torch.Tensor
    kl: torch.Tensor


def dense_distillation_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    teacher: SparseTeacher | None,
    alpha: float = 1.0,
    temperature: float = 1.0,
    tail: Tail = "ghost",
) -> LossTerms:
    """The loss by plain differentiable operations: the reference the fused path is tested against.

    logits [N, V], targets [N]. Without a teacher it is cross entropy. Returns sums over the N positions.
    """
    ce = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
    if teacher is None:
        return LossTerms(ce, ce.detach(), torch.zeros_like(ce))
    p = teacher.probabilities(temperature, tail)
    log_s = torch.log_softmax(logits.float() / temperature, dim=-1).gather(1, teacher.ids)
    kl = teacher.negative_entropy(p) - (p * log_s).sum()
    if tail == "ghost" and teacher.entropy is None:
        p_rest = (1 - p.sum(-1)).clamp(min=_TINY)
        s_rest = (-torch.expm1(torch.logsumexp(log_s, -1).clamp(max=-_TINY))).clamp(min=_TINY)
        kl = kl + (p_rest * (p_rest.log() - s_rest.log())).sum()
    kl = temperature**2 * kl
    return LossTerms(alpha * ce + (1 - alpha) * kl, ce.detach(), kl.detach())


class FusedDistillationLoss(torch.autograd.Function):
    """The same loss from hidden states [N, D] and the output embedding [V, D], chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        teacher: SparseTeacher | None,
        alpha: float,
        temperature: float,
        tail: Tail,
        chunk: int,
        vocabulary: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sums of total loss, cross entropy and KL over the N positions; see the module's formulas."""
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        ce_sum = torch.zeros((), dtype=torch.float32, device=hidden.device)
        kl_sum = torch.zeros_like(ce_sum)
        for begin in range(0, hidden.shape[0], chunk):
            part = slice(begin, begin + chunk)
            logits = (hidden[part] @ weight.t()).float()
            logits[:, vocabulary:] = -torch.inf  # not cut off: products of a round number of columns are faster
            ce, kl, grad = _chunk(logits, targets[part], teacher.rows(part) if teacher else None, alpha, temperature, tail)
            ce_sum += ce
            kl_sum += kl
            grad = grad.to(hidden.dtype)
            grad_hidden[part] = grad @ weight
            grad_weight += grad.t() @ hidden[part]
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        ctx.mark_non_differentiable(ce_sum, kl_sum)
        total = ce_sum.clone() if teacher is None else alpha * ce_sum + (1 - alpha) * kl_sum
        return total, ce_sum, kl_sum

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradients that the forward pass formed by that of the total."""
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grads[0], grad_weight * grads[0], None, None, None, None, None, None, None


def _chunk(
    logits: torch.Tensor, targets: torch.Tensor, teacher: SparseTeacher | None, alpha: float, temperature: float, tail: Tail
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """CE sum, KL sum and d(total)/d(logits) [n, V] of one chunk; overwrites `logits`."""
    rows = torch.arange(logits.shape[0], device=logits.device)
    lse = torch.logsumexp(logits, -1)
    ce = (lse - logits[rows, targets]).sum()
    zero = torch.zeros_like(ce)
    if teacher is None:
        grad = logits.sub_(lse[:, None]).exp_()
        grad[rows, targets] -= 1
        return ce, zero, grad

    p = teacher.probabilities(temperature, tail)
    lse_t = lse if temperature == 1 else torch.logsumexp(logits / temperature, -1)
    log_s = logits.gather(1, teacher.ids) / temperature - lse_t[:, None]
    kl = teacher.negative_entropy(p) - (p * log_s).sum()
    # d KL / d z = (row_scale * s - on_topk) / T, where `ghost` moves mass between the top k and the rest
    row_scale, on_topk = p.sum(-1), p
    if tail == "ghost" and teacher.entropy is None:
        s = log_s.exp()
        p_rest = (1 - p.sum(-1)).clamp(min=_TINY)
        s_rest = (-torch.expm1(torch.logsumexp(log_s, -1).clamp(max=-_TINY))).clamp(min=_TINY)
        kl = kl + (p_rest * (p_rest.log() - s_rest.log())).sum()
        ratio = p_rest / s_rest
        row_scale = row_scale - ratio * s.sum(-1)
        on_topk = p - ratio[:, None] * s
    scale = (1 - alpha) * temperature
    if temperature == 1:
        grad = logits.sub_(lse[:, None]).exp_().mul_((alpha + scale * row_scale)[:, None])
    else:
        soft = torch.exp(logits / temperature - lse_t[:, None]).mul_((scale * row_scale)[:, None])
        grad = logits.sub_(lse[:, None]).exp_().mul_(alpha).add_(soft)
    grad.scatter_add_(1, teacher.ids, on_topk * -scale)
    grad[rows, targets] -= alpha
    return ce, temperature**2 * kl, grad


def fused_distillation_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    teacher: SparseTeacher | None = None,
    alpha: float = 1.0,
    temperature: float = 1.0,
    tail: Tail = "ghost",
    chunk: int = 512,
    vocabulary: int | None = None,
) -> LossTerms:
    """Loss sums from hidden states [N, D] at label positions and the output embedding [V, D]; see the module.

    `chunk` is the number of rows whose logits [chunk, V] are alive at a time. Rows of the embedding beyond the tokenizer's
    `vocabulary` are padding: they get no probability and no gradient.
    """
    vocabulary = weight.shape[0] if vocabulary is None else vocabulary
    total, ce, kl = FusedDistillationLoss.apply(hidden, weight, targets, teacher, alpha, temperature, tail, chunk, vocabulary)
    return LossTerms(total, ce.detach(), kl.detach())
