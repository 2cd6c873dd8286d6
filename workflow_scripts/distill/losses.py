"""Cross entropy and the divergence from a sparse teacher, from one pass over the vocabulary, in chunks.

The teacher is known by its top-k raw logits z_i at ids i and by rest_T, the logsumexp of z / T over all other tokens. With
lse_T = log(exp(rest_T) + sum exp(z_i / T)) its probabilities at temperature T are p_i = exp(z_i / T - lse_T), and the mass
outside the top k is p_rest = exp(rest_T - lse_T). With s the student's softmax at T, the loss of one position with target y is

    alpha * CE(y, softmax(logits)) + (1 - alpha) * T^2 * KL(p || s)            (Hinton et al. 2015, eq. 4)

and the mass outside the top k is handled by `tail`:
    ghost        one extra bucket on both sides: + p_rest * log(p_rest / s_rest). Both are taken from the logsumexp with the
                 top k masked out: 1 - sum s_i has no digits left in float32 where the model is confident
    renormalise  p_i are divided by their sum
    zero         the sum runs over the top k only; its minimum is not the teacher (for comparison with other systems)

Over the k + 1 buckets of `ghost` the divergence may also be (Agarwal et al. 2024, eq. 1; beta as in TRL)
    reverse_kl   KL(s || p)
    jsd          beta KL(p || m) + (1 - beta) KL(s || m), m = beta p + (1 - beta) s

and the gradient of each in the scaled logits z / T is, with s_b the student's mass in the bucket of the token,
    forward_kl   s_b - p_b
    reverse_kl   s_b (log(s_b / p_b) - KL(s || p))
    jsd          (1 - beta) s_b (log(s_b / m_b) - KL(s || m))
shared out among the tokens of the rest by their probability in it.

A teacher known by random draws has p_i = count_i / draws instead, which sums to one, so that no tail is left and every `tail`
gives the same. The gradient is linear in p, so its expectation over draws is the gradient of the full KL (Anshumann et al.
2025, "Sparse Logit Sampling"). The value is not linear: sum p log p is too large by about (unique - 1) / (2 draws), so the
teacher's exact entropy, kept with the draws, takes its place and the value is unbiased, too (it may be negative by chance).

`FusedDistillationLoss` never holds the logits of all positions: per chunk of rows it forms logits = h W^T, the loss, and
at once the gradients of h and W, so that the backward pass only scales them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from workflow_scripts.settings.distillation import Distillation, Divergence
from workflow_scripts.settings.opd import Opd

Tail = Literal["ghost", "renormalise", "zero"]
_LOWEST = -1e30  # of a logarithm, so that no difference is NaN


@dataclass(frozen=True)
class KdLoss:
    """Weights, temperature and divergence of the loss; random draws leave no tail, it is `zero` then."""

    alpha: float = 1.0
    temperature: float = 1.0
    tail: Tail = "ghost"
    divergence: Divergence = "forward_kl"
    beta: float = 0.5

    @classmethod
    def of(cls, options: Distillation, opd: Opd | None = None) -> KdLoss:
        """From the settings; with `opd` from its divergence, without cross entropy."""
        tail = options.tail if options.sampling == "top_k" else "zero"
        if opd is not None:
            beta = opd.beta if opd.divergence == "jsd" else 0.5
            return cls(0.0, options.temperature, tail, opd.divergence, beta)
        beta = options.beta if options.divergence == "jsd" else 0.5
        return cls(options.alpha, options.temperature, tail, options.divergence, beta)


@dataclass(frozen=True)
class SparseTeacher:
    """Teacher distribution at N positions: ids [N, k] int64, logits [N, k] float32, `rest` [N] for one temperature.

    `rest` is the logsumexp of z / T over the tokens that are not among the ids, -inf where there are none. `entropy` [N] of the
    full distribution at T [nats] is there when the teacher is known by random draws; an id may then stand in several columns,
    and a logit of -inf fills a row up.
    """

    ids: torch.Tensor
    logits: torch.Tensor
    rest: torch.Tensor
    entropy: torch.Tensor | None = None

    def log_probabilities(self, temperature: float) -> torch.Tensor:
        """Logarithms [N, k + 1] of the probabilities of the ids and of all other tokens together."""
        return torch.log_softmax(torch.cat([self.logits / temperature, self.rest[:, None]], 1), -1)

    def probabilities(self, temperature: float, tail: Tail) -> torch.Tensor:
        """Top-k probabilities [N, k] at `temperature`, divided by their sum for tail `renormalise`."""
        if tail == "renormalise":
            return torch.softmax(self.logits / temperature, -1)
        return self.log_probabilities(temperature)[:, :-1].exp()

    def rows(self, part: slice) -> SparseTeacher:
        """The positions `part`."""
        entropy = None if self.entropy is None else self.entropy[part]
        return SparseTeacher(self.ids[part], self.logits[part], self.rest[part], entropy)

    def negative_entropy(self, p: torch.Tensor) -> torch.Tensor:
        """Sum of p log p over ids and positions: of the probabilities `p` [N, k], or the exact one kept with draws."""
        return torch.xlogy(p, p).sum() if self.entropy is None else -self.entropy.sum()


@dataclass(frozen=True)
class LossTerms:
    """Sums over positions: the total loss (differentiable), cross entropy and KL (T^2 included), both detached."""

    total: torch.Tensor
    cross_entropy: torch.Tensor
    kl: torch.Tensor


class FusedDistillationLoss(torch.autograd.Function):
    """The same loss from hidden states [N, D] and the output embedding [V, D], chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        teacher: SparseTeacher | None,
        loss: KdLoss,
        chunk: int,
        vocabulary: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sums of total loss, cross entropy and KL over the N positions; see the module's formulas."""
        grad_hidden = torch.empty_like(hidden)
        trained = ctx.needs_input_grad[1]  # not where adapters are trained: a third of the loss's products
        grad_weight = torch.zeros(weight.shape if trained else 0, dtype=torch.float32, device=weight.device)
        ce_sum = torch.zeros((), dtype=torch.float32, device=hidden.device)
        kl_sum = torch.zeros_like(ce_sum)
        for begin in range(0, hidden.shape[0], chunk):
            part = slice(begin, begin + chunk)
            logits = (hidden[part] @ weight.t()).float()
            logits[:, vocabulary:] = -torch.inf  # not cut off: products of a round number of columns are faster
            ce, kl, grad = _chunk(logits, targets[part], teacher.rows(part) if teacher else None, loss)
            ce_sum += ce
            kl_sum += kl
            grad = grad.to(hidden.dtype)
            grad_hidden[part] = grad @ weight
            if trained:
                grad_weight += grad.t() @ hidden[part]
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        ctx.mark_non_differentiable(ce_sum, kl_sum)
        total = ce_sum.clone() if teacher is None else loss.alpha * ce_sum + (1 - loss.alpha) * kl_sum
        return total, ce_sum, kl_sum

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradients that the forward pass formed by that of the total."""
        grad_hidden, grad_weight = ctx.saved_tensors
        of_weight = grad_weight * grads[0] if ctx.needs_input_grad[1] else None
        return grad_hidden * grads[0], of_weight, None, None, None, None, None


def _chunk(
    logits: torch.Tensor, targets: torch.Tensor, teacher: SparseTeacher | None, loss: KdLoss
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """CE sum, KL sum and d(total)/d(logits) [n, V] of one chunk; overwrites `logits`."""
    if teacher is not None and loss.tail == "ghost" and teacher.entropy is None:
        return _buckets(logits, targets, teacher, loss)
    rows, temperature = torch.arange(logits.shape[0], device=logits.device), loss.temperature
    lse = torch.logsumexp(logits, -1)
    ce = (lse - logits[rows, targets]).sum()
    if teacher is None:
        grad = logits.sub_(lse[:, None]).exp_()
        grad[rows, targets] -= 1
        return ce, torch.zeros_like(ce), grad

    p = teacher.probabilities(temperature, loss.tail)
    lse_t = lse if temperature == 1 else torch.logsumexp(logits / temperature, -1)
    log_s = logits.gather(1, teacher.ids) / temperature - lse_t[:, None]
    kl = teacher.negative_entropy(p) - (p * log_s).sum()
    scale = (1 - loss.alpha) * temperature
    row_scale = (scale * p.sum(-1))[:, None]  # d KL / d z = (sum(p) s - p) / T
    if temperature == 1:
        grad = logits.sub_(lse[:, None]).exp_().mul_(loss.alpha + row_scale)
    else:
        soft = torch.exp(logits / temperature - lse_t[:, None]).mul_(row_scale)
        grad = logits.sub_(lse[:, None]).exp_().mul_(loss.alpha).add_(soft)
    grad.scatter_add_(1, teacher.ids, p * -scale)
    grad[rows, targets] -= loss.alpha
    return ce, temperature**2 * kl, grad


def _buckets(
    logits: torch.Tensor, targets: torch.Tensor, teacher: SparseTeacher, loss: KdLoss
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same for the top k and the rest as one bucket. The top k are masked out, so that the rest keeps its digits."""
    rows, temperature = torch.arange(logits.shape[0], device=logits.device), loss.temperature
    at_target, top = logits[rows, targets], logits.gather(1, teacher.ids)
    logits.scatter_(1, teacher.ids, -torch.inf)
    rest = torch.logsumexp(logits, -1)
    lse = torch.logaddexp(rest, torch.logsumexp(top, -1))
    rest_t = rest if temperature == 1 else torch.logsumexp(logits / temperature, -1)
    lse_t = lse if temperature == 1 else torch.logaddexp(rest_t, torch.logsumexp(top / temperature, -1))
    log_s = torch.cat([top / temperature, rest_t[:, None]], 1).sub_(lse_t[:, None])
    kl, soft = divergence_of(teacher.log_probabilities(temperature), log_s, loss.divergence, loss.beta)
    soft *= (1 - loss.alpha) * temperature
    hard_top, hard_rest = torch.exp(top - lse[:, None]) * loss.alpha, torch.exp(rest - lse) * loss.alpha
    # of the rest by their probability in it, finite where there is no rest
    within_t = rest_t.clamp(min=_LOWEST)[:, None]
    if temperature == 1:
        grad = logits.sub_(within_t).exp_().mul_((hard_rest + soft[:, -1])[:, None])
    else:
        grad = torch.exp(logits / temperature - within_t).mul_(soft[:, -1:])
        if loss.alpha:
            grad += logits.sub_(rest.clamp(min=_LOWEST)[:, None]).exp_().mul_(hard_rest[:, None])
    grad.scatter_(1, teacher.ids, hard_top + soft[:, :-1])
    grad[rows, targets] -= loss.alpha
    return (lse - at_target).sum(), temperature**2 * kl, grad


def divergence_of(
    log_p: torch.Tensor, log_s: torch.Tensor, divergence: Divergence, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum over rows of the divergence of p [n, b] and s [n, b], and its gradient [n, b] in the logits of s; see the module."""
    log_s, log_p = log_s.clamp(min=_LOWEST), log_p.clamp(min=_LOWEST)
    s, p = log_s.exp(), log_p.exp()
    if divergence == "forward_kl":
        return (p * (log_p - log_s)).sum(), s - p
    if divergence == "reverse_kl":
        ratio = log_s - log_p
        value = (s * ratio).sum(-1, keepdim=True)
        return value.sum(), s * (ratio - value)
    log_m = torch.logaddexp(log_p + math.log(beta), log_s + math.log1p(-beta))
    ratio = log_s - log_m
    from_student = (s * ratio).sum(-1, keepdim=True)
    value = beta * (p * (log_p - log_m)).sum() + (1 - beta) * from_student.sum()
    return value, (1 - beta) * s * (ratio - from_student)


def fused_distillation_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    teacher: SparseTeacher | None = None,
    loss: KdLoss = KdLoss(),  # frozen
    chunk: int = 512,
    vocabulary: int | None = None,
) -> LossTerms:
    """Loss sums from hidden states [N, D] at label positions and the output embedding [V, D]; see the module.

    `chunk` is the number of rows whose logits [chunk, V] are alive at a time. Rows of the embedding beyond the tokenizer's
    `vocabulary` are padding: they get no probability and no gradient.
    """
    vocabulary = weight.shape[0] if vocabulary is None else vocabulary
    total, ce, kl = FusedDistillationLoss.apply(hidden, weight, targets, teacher, loss, chunk, vocabulary)
    return LossTerms(total, ce.detach(), kl.detach())
