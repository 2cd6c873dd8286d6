"""The distillation loss by plain differentiable operations in float64: what the fused path is tested against."""

from __future__ import annotations

import torch

from workflow_scripts.distill.losses import LossTerms, SparseTeacher, Tail


def top_k_teacher(z: torch.Tensor, k: int, temperature: float = 1.0) -> SparseTeacher:
    """The teacher of logits [N, V] as a cache of its top k knows it."""
    top = torch.topk(z, k, dim=-1)
    others = z.double().scatter(1, top.indices, -torch.inf)
    return SparseTeacher(top.indices, top.values, torch.logsumexp(others / temperature, -1).float())


def dense_distillation_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    teacher: SparseTeacher,
    alpha: float = 1.0,
    temperature: float = 1.0,
    tail: Tail = "ghost",
    divergence: str = "forward_kl",
    beta: float = 0.5,
) -> LossTerms:
    """logits [N, V], targets [N]: sums over N positions. The student's rest is the sum over the tokens outside the top k."""
    ce = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum")
    of_teacher = torch.cat([teacher.logits.double() / temperature, teacher.rest.double()[:, None]], 1).softmax(-1)
    p = of_teacher[:, :-1]
    p = p / p.sum(-1, keepdim=True) if tail == "renormalise" else p
    log_all = torch.log_softmax(logits.double() / temperature, -1)
    log_s = log_all.gather(1, teacher.ids)
    if tail == "ghost" and teacher.entropy is None and teacher.ids.shape[1] < logits.shape[1]:
        rest = log_all.scatter(1, teacher.ids, -torch.inf).logsumexp(-1, keepdim=True)
        p, log_s = of_teacher, torch.cat([log_s, rest], 1)
    s = log_s.exp()
    if divergence == "reverse_kl":
        found = (s * (log_s - p.log())).sum()
    elif divergence == "jsd":
        mixed = beta * p + (1 - beta) * s
        found = beta * torch.xlogy(p, p / mixed).sum() + (1 - beta) * torch.xlogy(s, s / mixed).sum()
    else:
        negative_entropy = torch.xlogy(p, p).sum() if teacher.entropy is None else -teacher.entropy.double().sum()
        found = negative_entropy - (p * log_s).sum()
    kl = temperature**2 * found
    return LossTerms((alpha * ce + (1 - alpha) * kl).float(), ce.float().detach(), kl.float().detach())
