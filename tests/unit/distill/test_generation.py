"""Generation: independence of the batch, exact distribution, honest counts."""

import pytest
import torch
from transformers import Gemma3TextConfig, Lfm2Config, MistralConfig

from tests.helpers.tiny_training import SIZES, VOCABULARY, model
from workflow_scripts.distill.generation import Prompt, SeededSampling, _cut, generate
from workflow_scripts.distill.seeds import prompt_seed
from workflow_scripts.settings.schema import Generation

PROMPTS = [Prompt(i, [3 + (i * 7 + j) % 90 for j in range(2 + i)], prompt_seed(0, i)) for i in range(5)]


def answers(model, prompts, strategy: str, batch_size: int):
    options = Generation(decoding_strategy=strategy, max_new_tokens=7, batch_size=batch_size, temperature=1.0, top_p=0.8)
    found = [a for batch in generate(model, prompts, options, eos_ids=[2], pad_id=0) for a in batch]
    return {a.key: a for a in found}


@pytest.mark.parametrize("strategy", ["greedy", "sampling"])
def test_an_answer_does_not_depend_on_its_batch(toy_model, strategy: str) -> None:
    together = answers(toy_model, PROMPTS, strategy, 5)
    assert together == answers(toy_model, PROMPTS, strategy, 1)
    assert together == answers(toy_model, PROMPTS[::-1], strategy, 2)
    assert len({tuple(a.token_ids) for a in together.values()}) > 1


def test_greedy_equals_a_plain_loop(toy_model) -> None:
    for key, answer in answers(toy_model, PROMPTS, "greedy", 5).items():
        tokens = list(PROMPTS[key].input_ids)
        for _ in range(7):
            with torch.no_grad():
                tokens.append(int(toy_model(torch.tensor([tokens])).logits[0, -1].argmax()))
        expected = tokens[len(PROMPTS[key].input_ids) :]
        assert answer.token_ids == (expected[: expected.index(2)] if 2 in expected else expected)


@pytest.mark.parametrize("strategy", ["greedy", "sampling"])
def test_an_answer_that_has_ended_leaves_its_batch_and_changes_no_other(toy_model, monkeypatch, strategy: str) -> None:
    """Batches of 2 tokens at a time: the rows of each forward pass go down where an answer ends, others go on as alone."""
    monkeypatch.setattr("workflow_scripts.distill.generation.SPAN", 2)
    options = Generation(decoding_strategy=strategy, max_new_tokens=7, batch_size=5, temperature=1.0, top_p=0.8)

    def written(prompts, ends):
        rows: list[int] = []
        hook = toy_model.register_forward_pre_hook(lambda _, args, own: rows.append(len(own["input_ids"])), with_kwargs=True)
        found = {a.key: a.completion for batch in generate(toy_model, prompts, options, ends, 0) for a in batch}
        hook.remove()
        return found, rows

    whole, rows = written(PROMPTS, [-1])
    assert rows == [5] * 7
    first = whole[0][0]
    ends = {key: tokens.index(first) + 1 if first in tokens else 7 for key, tokens in whole.items()}
    assert min(ends.values()) == 1 and max(ends.values()) == 7, "some answer ends at once, and some answer never does"
    cut, rows = written(PROMPTS, [first])
    assert cut == {key: tokens[: ends[key]] for key, tokens in whole.items()}
    assert rows == [sum(end > step - step % 2 for end in ends.values()) for step in range(7)]
    assert cut == {key: tokens for prompt in PROMPTS for key, tokens in written([prompt], [first])[0].items()}


@pytest.mark.parametrize("strategy", ["greedy", "sampling"])
def test_prompts_are_read_with_their_neighbours_in_length_and_answered_as_alone(toy_model, monkeypatch, strategy: str) -> None:
    """Five prompts of 1 to 30 tokens, two at a time: the widths that are read, then one pass a token, and the same answers."""
    monkeypatch.setattr("workflow_scripts.distill.generation.READ", 2)
    prompts = [Prompt(i, [3 + (i * 7 + j) % 90 for j in range(n)], prompt_seed(0, i)) for i, n in enumerate([1, 30, 4, 29, 2])]
    shapes: list[tuple[int, int]] = []
    hook = toy_model.register_forward_pre_hook(lambda _, args, own: shapes.append(own["input_ids"].shape), with_kwargs=True)
    together = answers(toy_model, prompts, strategy, 5)
    hook.remove()
    assert shapes[:4] == [(2, 29), (2, 3), (1, 1), (5, 1)], "of 5 rows of 30 tokens each, 65 instead of 145 before the last"
    assert together == answers(toy_model, prompts, strategy, 1)


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SIZES, sliding_window=4),
        Gemma3TextConfig(**SIZES, sliding_window=4, layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
        Lfm2Config(**SIZES, layer_types=["conv", "full_attention", "conv"]),
    ],
    ids=lambda config: config.model_type,
)
def test_windows_and_recurrent_states_are_answered_as_alone(monkeypatch, config) -> None:
    """Prompts longer and shorter than the window, answers that end at different tokens."""
    monkeypatch.setattr("workflow_scripts.distill.generation.READ", 2)
    monkeypatch.setattr("workflow_scripts.distill.generation.SPAN", 2)
    policy = model("sdpa", config).eval()
    prompts = [Prompt(i, [3 + (i * 7 + j) % 27 for j in range(n)], prompt_seed(0, i)) for i, n in enumerate([1, 9, 4, 8, 2])]
    options = Generation(decoding_strategy="sampling", max_new_tokens=9, batch_size=5)
    ends = list(range(3, VOCABULARY, 6))
    (together,) = generate(policy, prompts, options, ends, 0)
    assert len({answer.generated for answer in together}) > 2
    alone = [answer for prompt in prompts for (answer,) in generate(policy, [prompt], options, ends, 0)]
    assert {answer.key: answer for answer in together} == {answer.key: answer for answer in alone}


@pytest.mark.parametrize("top_p", [1.0, 0.75])
def test_samples_follow_the_nucleus_distribution(top_p: float) -> None:
    """Frequencies of 20,000 samples against probabilities from a plain sort, each within five standard errors."""
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
    temperature, count = 0.9, 20000
    p = torch.softmax(logits / temperature, -1)
    keep = [i for i in range(6) if p[:i].sum() < top_p]
    expected = torch.zeros(6)
    expected[keep] = p[keep] / p[keep].sum()
    sampler = SeededSampling([prompt_seed(5, i) for i in range(count)], temperature, top_p)
    scores = sampler(torch.zeros(count, 1), logits.expand(count, -1))
    observed = torch.bincount(scores.argmax(-1), minlength=6) / count
    assert (scores.isfinite().sum(-1) == 1).all()
    for o, e in zip(observed.tolist(), expected.tolist(), strict=True):
        assert abs(o - e) <= 5 * (e * (1 - e) / count) ** 0.5


def test_a_nucleus_larger_than_the_candidates_is_sorted_whole(monkeypatch) -> None:
    monkeypatch.setattr(SeededSampling, "_CANDIDATES", 2)
    seeds = [prompt_seed(1, i) for i in range(400)]
    flat = torch.zeros(400, 10)
    assert set(SeededSampling(seeds, 1.0, 0.95)(flat, flat.clone()).argmax(-1).tolist()) == set(range(10))


def test_padding_after_the_end_is_not_generated() -> None:
    answer = _cut("k", [7, 8, 2, 0, 0, 0], eos_ids=[2])
    assert (answer.token_ids, answer.generated, answer.truncated) == ([7, 8], 3, False)
    assert _cut("k", [7, 8], eos_ids=[2]).truncated


def test_out_of_memory_halves_the_batch_and_says_so(toy_model, monkeypatch, capsys) -> None:
    from workflow_scripts.distill import generation

    sizes = []
    real = generation._generate_batch

    def limited(model, batch, *rest):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("too big")
        return real(model, batch, *rest)

    monkeypatch.setattr(generation, "_generate_batch", limited)
    options = Generation(decoding_strategy="greedy", max_new_tokens=3, batch_size=5)
    found = [a for batch in generate(toy_model, PROMPTS, options, [2], 0) for a in batch]
    assert {a.key for a in found} == {0, 1, 2, 3, 4}
    assert sizes == [5, 2, 3, 1, 2]
    assert capsys.readouterr().out.startswith("out of memory with 5 rows per batch: going on with 2\n")


def test_sampled_answers_follow_the_models_distribution(toy_model) -> None:
    """Chi-square of 3,000 sampled pairs of tokens after one prompt against the probabilities of a plain forward.

    Pairs with fewer than five expected are one cell; the bound is the mean of chi-square plus five standard deviations.
    """
    count, ids = 3000, [11, 12, 13]
    options = Generation(decoding_strategy="sampling", temperature=0.6, top_p=1.0, max_new_tokens=2, batch_size=500)
    prompts = [Prompt(number, ids, prompt_seed(9, number)) for number in range(count)]
    found = [tuple(a.token_ids) for batch in generate(toy_model, prompts, options, eos_ids=[], pad_id=0) for a in batch]
    with torch.no_grad():
        first = torch.softmax(toy_model(torch.tensor([ids])).logits[0, -1] / 0.6, -1)
        after = toy_model(torch.tensor([[*ids, token] for token in range(97)])).logits[:, -1]
    joint = first[:, None] * torch.softmax(after / 0.6, -1) * count
    observed = torch.zeros(97, 97)
    for a, b in found:
        observed[a, b] += 1
    large = joint >= 5
    expected = torch.cat([joint[large], joint[~large].sum()[None]])
    counted = torch.cat([observed[large], observed[~large].sum()[None]])
    statistic = ((counted - expected) ** 2 / expected).sum().item()
    freedom = len(expected) - 1
    assert freedom >= 10 and statistic <= freedom + 5 * (2 * freedom) ** 0.5, (statistic, freedom)
    wrong = torch.cat([joint.t()[large], joint.t()[~large].sum()[None]]).clamp(min=1)
    assert ((counted - wrong) ** 2 / wrong).sum().item() > freedom + 50 * (2 * freedom) ** 0.5, (
        "another distribution is noticed"
    )
