"""Random draws against closed forms: counts, packing, unbiasedness, independence of batch and shard."""

import copy
import math

import numpy as np
import pytest
import torch

from tests.helpers.dense_loss import dense_distillation_loss, top_k_teacher
from tests.unit.distill.test_logit_cache import MADE_FROM, ROWS
from workflow_scripts.artefact import open_artefact, publish
from workflow_scripts.distill import logit_cache
from workflow_scripts.distill.logit_cache import CacheError, LogitCache
from workflow_scripts.distill.losses import KdLoss, SparseTeacher, fused_distillation_loss
from workflow_scripts.distill.random_draws import DrawnShard, Draws, draw, uniforms
from workflow_scripts.distill.training import Collator, _distillation_forward


def save(tmp_path, shards: list[DrawnShard], draws: int, temperatures, vocab_size: int):
    build = tmp_path / "build"
    build.mkdir()
    for number, shard in enumerate(shards):
        logit_cache.write_shard(build / f"shard-{number:05d}.safetensors", shard, vocab_size)
    facts = {
        "format": "random/1",
        "k": max(shard.width() for shard in shards),
        "draws": draws,
        "seed": 3,
        "temperatures": list(temperatures),
        "shards": [{"file": path.name} for path in sorted(build.glob("*.safetensors"))],
        **MADE_FROM,
    }
    publish(build, tmp_path / "cache" / "manifest.json", "logit_cache", facts)
    return tmp_path / "cache" / "manifest.json"


def drawn(model, rows, temperatures=(1.0, 2.0), draws: int = 50, chunk: int = 4) -> DrawnShard:
    return logit_cache.drawn_rows(model, rows, draws, 3, list(temperatures), pad_id=0, vocabulary=97, chunk=chunk)


def dense(teacher: SparseTeacher, vocabulary: int, temperature: float) -> torch.Tensor:
    """Probabilities [N, V] by summing the columns of equal ids."""
    p = teacher.probabilities(temperature, "zero")
    return torch.zeros(len(p), vocabulary).scatter_add_(1, teacher.ids, p)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_counts_are_those_of_inverting_the_distribution_one_by_one(temperature: float) -> None:
    logits = 3 * torch.randn(7, 40, generator=torch.Generator().manual_seed(1))
    uniform = uniforms([11, 12], [3, 4], 60)
    found = draw(logits, uniform, temperature)
    p = torch.softmax(logits.double() / temperature, -1).numpy()
    begin = 0
    for row in range(7):
        tokens = [int(np.searchsorted(p[row].cumsum(), u, side="right")) for u in uniform[row].tolist()]
        end = begin + int(found.entries[row])
        assert dict(zip(found.ids[begin:end].tolist(), found.counts[begin:end].tolist(), strict=True)) == {
            token: tokens.count(token) for token in set(tokens)
        }
        assert found.entropy[row].item() == pytest.approx(float(-(p[row] * np.log(p[row])).sum()), rel=1e-5)
        begin = end
    assert begin == len(found.ids)


@pytest.mark.parametrize("vocabulary", [131_072, 262_144, 1 << 20])
def test_ids_over_65535_and_counts_over_127_survive_packing(tmp_path, vocabulary: int) -> None:
    """A position with 1,000 draws, 700 of them of one token, and one whose draws are all of one token."""
    last = vocabulary - 1
    counts = [{70000: 700, 65535: 127, last: 128, 5: 45}, {65536: 1000}, {0: 254, 1: 255, last - 1: 491}]
    pieces = []
    for wanted in counts:
        tokens = torch.tensor([token for token, count in wanted.items() for _ in range(count)])
        p = torch.zeros(vocabulary, dtype=torch.float64)
        p[list(wanted)] = torch.tensor(list(wanted.values()), dtype=torch.float64) / 1000
        middles = (p.cumsum(0)[tokens.sort().values] - p[tokens.sort().values] / 2)[None]
        pieces.append(draw(p.log().clamp(min=-200).float()[None], middles, 1.0))
    shard = DrawnShard([8, 9], [1, 2], [Draws.join(pieces)])
    assert shard.draws[0].counts.max() == 127 and shard.width() == 6 + 1 + 2 + 1
    cache = LogitCache(*open_artefact(save(tmp_path, [shard], 1000, [1.0], vocabulary), "logit_cache"))
    for found, wanted in zip([cache.teacher(8, 1.0, 1), cache.teacher(9, 1.0, 2)], [counts[:1], counts[1:]], strict=True):
        for row, expected in zip(dense(found, vocabulary, 1.0), wanted, strict=True):
            assert {int(i): round(1000 * float(row[i])) for i in row.nonzero()[:, 0]} == expected


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_cache_gives_back_what_was_drawn(tmp_path, toy_model, temperature: float) -> None:
    shards = [drawn(toy_model, ROWS[:3]), drawn(toy_model, ROWS[3:])]
    cache = LogitCache(*open_artefact(save(tmp_path, shards, 50, [1.0, 2.0], 97), "logit_cache"))
    for row in reversed(ROWS):
        alone = drawn(toy_model, [row], temperatures=[temperature], chunk=100).draws[0]
        live = alone.teacher(50, temperature, int(alone.entries.max()))
        found = cache.teacher(row["example_id"], temperature, len(alone.entries))
        assert torch.equal(dense(found, 97, temperature), dense(live, 97, temperature)), (
            "neither batch, shard nor chunk matters"
        )
        torch.testing.assert_close(found.entropy, live.entropy, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(dense(found, 97, temperature).sum(-1), torch.ones(len(alone.entries)))
    with pytest.raises(CacheError, match=r"temperature = 4.0, but the cache at .* was made for \[1.0, 2.0\]: rebuild it or"):
        cache.teacher(ROWS[0]["example_id"], 4.0, 2)
    with pytest.raises(CacheError, match="made with draws = 50, asked for 60: rebuild the cache"):
        cache.check({"draws": 60}, 1.0)


def test_size_is_three_bytes_an_entry_and_twelve_a_position_at_most(tmp_path) -> None:
    """A Zipf-like teacher of OLMo-2's vocabulary at 50 draws."""
    p = 1 / torch.arange(1, 100353).double() ** 1.6
    found = draw(torch.log(p).float().expand(256, -1), uniforms([1], [256], 50), 1.0)
    path = tmp_path / "shard.safetensors"
    logit_cache.write_shard(path, DrawnShard([1], [256], [found]), 100352)
    entries = len(found.ids) / 256
    assert 8 < entries < 16, entries
    assert path.stat().st_size / 256 <= 3 * entries + 12


N, V, D = 48, 300, 24


def problem(temperature: float):
    """Teacher logits like a language model's (a few likely tokens, a long tail), a student, targets."""
    generator = torch.Generator().manual_seed(0)
    z = -1.3 * torch.log(torch.arange(1, V + 1).float())
    z = torch.stack([z[torch.randperm(V, generator=generator)] for _ in range(N)]) + torch.randn(N, V, generator=generator)
    hidden = torch.randn(N, D, generator=generator)
    weight = 0.2 * torch.randn(V, D, generator=generator)
    targets = torch.randint(0, V, (N,), generator=generator)
    return z, torch.log_softmax(z / temperature, -1), hidden, weight, targets


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradient_and_value_are_unbiased(temperature: float) -> None:
    """The mean of 400 estimates is as near to the full KL's gradient and value as chance allows.

    A coordinate of the gradient is off by (1 - alpha) T times the error of a mean of n = 400 x draws Bernoulli variables, whose
    variance is p (1 - p). By Bernstein's inequality that is below L / 3n + sqrt((L / 3n)^2 + 2 L p (1 - p) / n) with the
    probability 1 - 2 exp(-L); L is chosen so that all coordinates are, with the probability 0.999. The value -T^2 sum p_hat
    log s has the variance T^4 Var_p(log s) / draws and must be within five standard errors. Nothing but chance is left: the
    distance of the mean from the full gradient is the one that the variances give.
    """
    draws, repeats, alpha = 20, 400, 0.25
    z, log_p, hidden, weight, targets = problem(temperature)
    logits = (hidden @ weight.t()).requires_grad_()
    everything = top_k_teacher(z, V, temperature)
    exact = dense_distillation_loss(logits, targets, everything, alpha, temperature)
    (gradient,) = torch.autograd.grad(exact.total, logits)
    mean, values = torch.zeros_like(gradient), []
    for seed in range(repeats):
        found = draw(z, uniforms([seed], [N], draws), temperature)
        teacher = found.teacher(draws, temperature, int(found.entries.max()))
        terms = dense_distillation_loss(logits, targets, teacher, alpha, temperature)
        mean += torch.autograd.grad(terms.total, logits)[0] / repeats
        values.append(terms.kl.item())
    p, log_s = log_p.exp(), torch.log_softmax(logits.detach() / temperature, -1)
    n, chance = draws * repeats, math.log(2 * N * V / 1e-3)
    linear = chance / (3 * n)
    error = (1 - alpha) * temperature * (linear + torch.sqrt(linear**2 + 2 * chance * p * (1 - p) / n))
    assert ((mean - gradient).abs() <= error + 1e-6).all()
    spread = (1 - alpha) * temperature * torch.sqrt(p * (1 - p) / n)
    assert (mean - gradient).norm().item() == pytest.approx(spread.norm().item(), rel=0.05)
    variance = temperature**4 * ((p * log_s**2).sum(-1) - (p * log_s).sum(-1) ** 2).sum().item() / draws
    assert abs(sum(values) / repeats - exact.kl.item()) <= 5 * math.sqrt(variance / repeats)
    assert np.std(values) == pytest.approx(math.sqrt(variance), rel=0.25)


def angle(a: torch.Tensor, b: torch.Tensor) -> float:
    return math.degrees(math.acos(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).clamp(-1, 1).item()))


def test_the_angle_to_the_full_gradient_falls_with_the_batch_and_below_that_of_as_many_top_logits() -> None:
    """Gradient of the output embedding; a student near its teacher, as many entries per position on both sides.

    Truncation is a bias, which more positions do not mend; the error of draws is noise, which they average out.
    """
    vocabulary, width = 1000, 32
    generator = torch.Generator().manual_seed(0)
    all_hidden = torch.randn(8192, width, generator=generator)
    theirs = 0.5 * torch.randn(vocabulary, width, generator=generator)
    mine = theirs + 0.15 * torch.randn(vocabulary, width, generator=generator)

    def angles(positions: int) -> tuple[float, float, float]:
        hidden = all_hidden[:positions]
        z = hidden @ theirs.t()

        def gradient(teacher: SparseTeacher, tail: str = "zero") -> torch.Tensor:
            weight = mine.clone().requires_grad_()
            targets = torch.zeros(positions, dtype=torch.int64)
            fused_distillation_loss(hidden, weight, targets, teacher, KdLoss(0.0, 1.0, tail)).total.backward()
            return weight.grad

        full = gradient(top_k_teacher(z, vocabulary))
        found = draw(z, uniforms([4], [positions], 50), 1.0)
        top = top_k_teacher(z, round(len(found.ids) / positions))
        truncated = [angle(gradient(top, tail), full) for tail in ("zero", "renormalise")]
        return angle(gradient(found.teacher(50, 1.0, int(found.entries.max()))), full), *truncated

    few, many = angles(1024), angles(4096)
    assert many[0] < 0.75 * min(many[1:]), (few, many)
    assert many[0] < 0.7 * few[0]
    assert many[1:] == pytest.approx(few[1:], rel=0.1)


@pytest.mark.parametrize("tail", ["ghost", "renormalise", "zero"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_fused_equals_plain_and_the_tail_does_not_matter(temperature: float, tail: str) -> None:
    z, _, hidden, weight, targets = problem(temperature)
    z[:, 7] += 15  # counts over 127, so an id in two columns
    found = draw(z, uniforms([4], [N], 300), temperature)
    assert found.counts.max() == 127
    teacher = found.teacher(300, temperature, int(found.entries.max()))
    plain, fused = ([t.clone().requires_grad_() for t in (hidden, weight)] for _ in range(2))
    reference = dense_distillation_loss(plain[0] @ plain[1].t(), targets, teacher, 0.4, temperature, "zero")
    terms = fused_distillation_loss(*fused, targets, teacher, KdLoss(0.4, temperature, tail), chunk=7)
    reference.total.backward()
    terms.total.backward()
    assert terms.total.item() == pytest.approx(reference.total.item(), rel=1e-5)
    for mine, theirs in zip(fused, plain, strict=True):
        assert theirs.grad.abs().sum() > 0
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_shuffled_batch_of_draws_is_the_sum_of_its_examples(tmp_path, toy_model) -> None:
    manifest = save(tmp_path, [drawn(toy_model, ROWS[:3]), drawn(toy_model, ROWS[3:])], 50, [1.0, 2.0], 97)
    collate = Collator(ROWS, [], pad_id=0, cache=LogitCache(*open_artefact(manifest, "logit_cache")), temperature=2.0)
    student = copy.deepcopy(toy_model)
    student.lm_head.weight.mul_(0.2)

    def loss(numbers: list[int]) -> torch.Tensor:
        batch = collate([{"row": number} for number in numbers])
        terms = _distillation_forward(student, **batch, kd=KdLoss(alpha=0.3, temperature=2.0, tail="zero"))
        return torch.stack([terms["loss"], terms["cross_entropy"], terms["kl"]])

    order = [3, 0, 4, 1, 2, 3, 0]
    alone = sum(loss([number]) for number in order)
    torch.testing.assert_close(loss(order), alone, rtol=1e-5, atol=1e-4)
    assert (alone > 0.1).all()
