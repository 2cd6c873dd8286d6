"""The split, its tables, and what may be learned from; templates must tell the assistant's tokens."""

import random

import pytest

from workflow_scripts.distill import corpus, preference
from workflow_scripts.distill.filtering import rejection
from workflow_scripts.distill.generation import Answer
from workflow_scripts.distill.templates import SHIPPED, TemplateError, install_chat_template
from workflow_scripts.settings.schema import Filtering

USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}


class Tokenizer:
    chat_template = None


def test_split_is_seeded_disjoint_and_refuses_too_few_rows() -> None:
    train, held_out, left_out = corpus.split(range(20), 10, 5, seed=3)
    assert len(train) == 10 and len(held_out) == 5 and not set(train) & set(held_out) and left_out == 0
    assert (train, held_out, 0) == corpus.split(range(20), 10, 5, seed=3)
    with pytest.raises(corpus.CorpusError, match="evaluation_examples = 5, but the corpus has 5 different prompts in 5 usable"):
        corpus.split(range(5), 1, 5, 0)
    with pytest.raises(corpus.CorpusError, match="evaluation_examples = 1, but the corpus has 1 different prompts in 9 usable"):
        corpus.split([7] * 9, 1, 1, 0)


def test_no_prompt_is_on_both_sides_of_the_split() -> None:
    prompts = [number // 3 for number in range(60)]
    train, held_out, left_out = corpus.split(prompts, 100, 8, seed=1)
    assert len({prompts[n] for n in held_out}) == 8 and not {prompts[n] for n in held_out} & {prompts[n] for n in train}
    assert left_out == 16 and len(train) == 60 - 8 - 16


def test_conversations_with_a_prompt_in_common_have_one_key() -> None:
    first, whole = corpus.keys([USER, ASSISTANT])
    assert corpus.keys([{"role": "user", "content": " hi\n"}, ASSISTANT])[0] == first
    assert corpus.keys([USER, ASSISTANT, USER, ASSISTANT])[0] == first
    assert corpus.keys([{"role": "system", "content": "s"}, USER, ASSISTANT])[0] != first
    assert corpus.keys([USER, {"role": "assistant", "content": "no"}]) == (
        first,
        corpus.keys([USER, {**ASSISTANT, "content": "no"}])[1],
    )
    assert corpus.keys([USER, ASSISTANT])[1] == whole != corpus.keys([USER, {**ASSISTANT, "content": "no"}])[1]
    assert corpus.keys([ASSISTANT])[0] != corpus.keys([{**ASSISTANT, "content": "no"}])[0]


def test_a_table_in_another_order_than_its_rows_come_in(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(corpus, "_IN_MEMORY", 10)
    monkeypatch.setattr(corpus, "_FLUSH", 3)
    order = random.Random(0).sample(range(45), 45)
    table = corpus.ShuffledTable(tmp_path / "t.parquet", 45)
    for number, position in enumerate(order):
        if position != 17:  # left out
            tokens = {"input_ids": [position] * 3, "loss_mask": [0, 1, 1], "truncated": False}
            table.add(position, {"example_id": number, "messages": [USER], **tokens})
    table.close()
    found = corpus.read_table(tmp_path / "t.parquet")
    assert [row["input_ids"][0] for row in found] == [n for n in range(45) if n != 17]
    assert [row["example_id"] for row in found] == [order.index(n) for n in range(45) if n != 17]
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_prompt_ends_with_the_last_user_turn_and_keeps_the_rest() -> None:
    system = {"role": "system", "content": "s"}
    assert corpus.prompt_of([system, USER, ASSISTANT, USER, ASSISTANT]) == [system, USER, ASSISTANT, USER]
    assert corpus.prompt_of([ASSISTANT]) is None


def test_a_template_without_markers_is_refused_with_the_remedy(tmp_path) -> None:
    path = tmp_path / "plain.jinja"
    path.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(TemplateError, match="no {% generation %} markers.*save it as a .jinja file"):
        install_chat_template(Tokenizer(), str(path))
    with pytest.raises(TemplateError, match="nope.jinja does not exist; shipped templates: olmo2, smollm2"):
        install_chat_template(Tokenizer(), "nope")
    with pytest.raises(TemplateError, match="the tokenizer has no chat template"):
        install_chat_template(Tokenizer(), "tokenizer")
    tokenizer = Tokenizer()
    for shipped in SHIPPED.glob("*.jinja"):
        install_chat_template(tokenizer, shipped.stem)
        assert tokenizer.chat_template == shipped.read_text()


def sample(text: str, likelihood: float, tokens: int = 4, truncated: bool = False) -> preference.Sample:
    return preference.Sample(text, [5] * tokens, truncated, 0, likelihood)


def test_ranking_by_mean_and_by_sum_differ_where_lengths_do() -> None:
    short, long = sample("short", -4.0, tokens=2), sample("long", -6.0, tokens=6)
    dropped: dict = preference.Counter()
    assert preference.rank([short, long], "likelihood_mean", 0.0, True, dropped) == (long, short)
    assert preference.rank([short, long], "likelihood", 0.0, True, dropped) == (short, long)
    assert not dropped


def test_dropped_pairs_are_counted_by_reason() -> None:
    dropped: dict = preference.Counter()
    pairs = [
        [sample("a", -1), sample("a", -2)],
        [sample("a", -1.0), sample("b", -1.1)],
        [sample("a", -1), sample("b", -9, truncated=True)],
        [sample("a", -1), sample("  ", -2)],
    ]
    assert [preference.rank(p, "likelihood_mean", 0.5, False, dropped) for p in pairs] == [None] * 4
    assert dropped == {"equal_texts": 1, "margin": 1, "truncated": 1, "empty": 1}


@pytest.mark.parametrize(
    ("answer", "text", "reason"),
    [
        (Answer(0, [], 2), "", "empty"),
        (Answer(0, [5] * 4, None), "cut", "truncated"),
        (Answer(0, [5], 2), "x", "too_short"),
        (Answer(0, [5] * 9, 2), "x", "too_long"),
        (Answer(0, [5] * 4, 2), "I cannot help", "refusal"),
        (Answer(0, [5] * 4, 2), "again", "duplicate"),
        (Answer(0, [5] * 4, 2), "new", None),
    ],
)
def test_filters(answer, text, reason) -> None:
    options = Filtering(min_length=2, max_length=8, refusal_pattern="^i cannot")
    assert rejection(text, len(answer.token_ids), answer.truncated, options, {"again"}) == reason
    assert rejection(text, len(answer.token_ids), answer.truncated, Filtering(enabled=False), {"again"}) == (
        "empty" if reason == "empty" else None
    )
