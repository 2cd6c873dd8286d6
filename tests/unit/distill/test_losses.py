"""The loss against independent computations: full-vocabulary KL, plain autograd, finite expectation."""

import pytest
import torch

from tests.helpers.dense_loss import dense_distillation_loss, top_k_teacher
from workflow_scripts.distill.losses import KdLoss, fused_distillation_loss

N, D, V = 13, 8, 41


def problem(k: int, temperature: float, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=generator, dtype=torch.float32)
    weight = torch.randn(V, D, generator=generator)
    targets = torch.randint(0, V, (N,), generator=generator)
    z = 2 * torch.randn(N, V, generator=generator)
    return hidden, weight, targets, z, top_k_teacher(z, k, temperature)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("tail", ["ghost", "renormalise", "zero"])
def test_whole_vocabulary_equals_dense_kl(temperature: float, tail: str) -> None:
    hidden, weight, targets, z, teacher = problem(V, temperature)
    logits = hidden @ weight.t()
    expected = temperature**2 * torch.nn.functional.kl_div(
        torch.log_softmax(logits / temperature, -1), torch.log_softmax(z / temperature, -1), log_target=True, reduction="sum"
    )
    for terms in (
        dense_distillation_loss(logits, targets, teacher, 0.3, temperature, tail),
        fused_distillation_loss(hidden, weight, targets, teacher, KdLoss(0.3, temperature, tail), chunk=5),
    ):
        assert terms.kl.item() == pytest.approx(expected.item(), rel=1e-5)
        ce = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        assert terms.cross_entropy.item() == pytest.approx(ce.item(), rel=1e-5)
        assert terms.total.item() == pytest.approx((0.3 * ce + 0.7 * expected).item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("tail", ["ghost", "renormalise", "zero"])
def test_the_gradient_at_whole_vocabulary_is_that_of_dense_kl(temperature: float, tail: str) -> None:
    hidden, weight, targets, z, teacher = problem(V, temperature)
    plain, fused = ([t.clone().requires_grad_() for t in (hidden, weight)] for _ in range(2))
    logits = plain[0] @ plain[1].t()
    kl = torch.nn.functional.kl_div(
        torch.log_softmax(logits / temperature, -1), torch.log_softmax(z / temperature, -1), log_target=True, reduction="sum"
    )
    (0.3 * torch.nn.functional.cross_entropy(logits, targets, reduction="sum") + 0.7 * temperature**2 * kl).backward()
    fused_distillation_loss(*fused, targets, teacher, KdLoss(0.3, temperature, tail), chunk=5).total.backward()
    for mine, theirs in zip(fused, plain, strict=True):
        assert theirs.grad.abs().sum() > 0
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("tail", ["ghost", "renormalise", "zero"])
def test_fused_value_and_gradient_equal_plain(tail: str, temperature: float, chunk: int) -> None:
    hidden, weight, targets, _, teacher = problem(6, temperature)
    plain = [t.clone().requires_grad_() for t in (hidden, weight)]
    fused = [t.clone().requires_grad_() for t in (hidden, weight)]
    reference = dense_distillation_loss(plain[0] @ plain[1].t(), targets, teacher, 0.4, temperature, tail)
    terms = fused_distillation_loss(fused[0], fused[1], targets, teacher, KdLoss(0.4, temperature, tail), chunk)
    (reference.total * 0.5).backward()
    (terms.total * 0.5).backward()
    assert terms.total.item() == pytest.approx(reference.total.item(), rel=1e-5)
    for mine, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_without_teacher_value_and_gradient_are_cross_entropy() -> None:
    hidden, weight, targets, _, _ = problem(6, 1.0)
    plain = [t.clone().requires_grad_() for t in (hidden, weight)]
    fused = [t.clone().requires_grad_() for t in (hidden, weight)]
    torch.nn.functional.cross_entropy(plain[0] @ plain[1].t(), targets, reduction="sum").backward()
    fused_distillation_loss(fused[0], fused[1], targets, chunk=5).total.backward()
    for mine, theirs in zip(fused, plain, strict=True):
        assert theirs.grad.abs().sum() > 0
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_ghost_is_zero_at_the_teacher_and_zero_tail_is_not() -> None:
    _, _, targets, z, teacher = problem(6, 1.0)
    assert dense_distillation_loss(z, targets, teacher, 0.0, 1.0, "ghost").kl.item() == pytest.approx(0.0, abs=1e-4)
    flatter = dense_distillation_loss(
        torch.full_like(z, -30.0).scatter(1, teacher.ids, teacher.logits), targets, teacher, 0.0, 1.0, "zero"
    )
    assert flatter.kl.item() < -0.1, "leaving the tail out rewards a student that puts no mass there"


@pytest.mark.parametrize("k", [6, V])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("divergence", "beta"), [("forward_kl", 0.5), ("reverse_kl", 0.5), ("jsd", 0.5), ("jsd", 0.9)])
def test_divergences_equal_a_dense_float64_reference(divergence: str, beta: float, temperature: float, k: int) -> None:
    hidden, weight, targets, _, teacher = problem(k, temperature)
    plain = [t.double().requires_grad_() for t in (hidden, weight)]
    fused = [t.clone().requires_grad_() for t in (hidden, weight)]
    reference = dense_distillation_loss(plain[0] @ plain[1].t(), targets, teacher, 0.3, temperature, "ghost", divergence, beta)
    terms = fused_distillation_loss(*fused, targets, teacher, KdLoss(0.3, temperature, "ghost", divergence, beta), chunk=5)
    reference.total.backward()
    terms.total.backward()
    assert terms.kl.item() == pytest.approx(reference.kl.item(), rel=1e-5) and terms.kl > 0.1
    for mine, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("margin", [14.0, 60.0, 150.0])
def test_a_confident_student_keeps_the_digits_of_its_tail(margin: float, divergence: str, temperature: float) -> None:
    """Teacher tail of 4 %, student tail from 1e-6 to below the smallest float32."""
    logits = torch.zeros(1, 40).index_fill_(1, torch.arange(4), margin * temperature)
    logits[0, 4:] += torch.linspace(0, 1, 36)
    p = torch.cat([torch.full((1, 4), 0.24), torch.full((1, 36), 0.04 / 36)], 1)
    z = temperature * p.log()
    _equals_float64(logits, top_k_teacher(z, 4, temperature), temperature, divergence)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("margin", [14.0, 30.0, 60.0])
def test_a_confident_teacher_keeps_the_digits_of_its_tail(margin: float, divergence: str, temperature: float) -> None:
    """Student tail of 4 %, teacher tail from 1e-5 to 1e-25: 1 - sum p has none of it left in float32."""
    z = torch.linspace(0, 1, 40)[None].index_fill(1, torch.arange(4), margin) * temperature
    p = torch.cat([torch.full((1, 4), 0.24), torch.full((1, 36), 0.04 / 36)], 1)
    _equals_float64(temperature * p.log(), top_k_teacher(z, 4, temperature), temperature, divergence)


def _equals_float64(logits, teacher, temperature: float, divergence: str) -> None:
    targets = torch.zeros(1, dtype=torch.int64)
    plain, fused = logits.double().requires_grad_(), logits.clone().requires_grad_()
    reference = dense_distillation_loss(plain, targets, teacher, 0.2, temperature, "ghost", divergence)
    identity = torch.eye(40)
    terms = fused_distillation_loss(fused, identity, targets, teacher, KdLoss(0.2, temperature, "ghost", divergence))
    reference.total.backward()
    terms.total.backward()
    assert terms.kl.item() == pytest.approx(reference.kl.item(), rel=1e-4)
    torch.testing.assert_close(fused.grad, plain.grad.float(), rtol=1e-3, atol=1e-7)
