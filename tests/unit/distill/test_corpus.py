"""Rows that cannot be trained on are named; templates must tell the assistant's tokens."""

import json

import pytest

from workflow_scripts.distill import corpus, preference
from workflow_scripts.distill.filtering import rejection
from workflow_scripts.distill.generation import Answer
from workflow_scripts.distill.templates import SHIPPED, TemplateError, install_chat_template
from workflow_scripts.settings.schema import Filtering

USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}


class Tokenizer:
    chat_template = None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [USER]}, "row 7 has no assistant turn"),
        ({"text": "x"}, "row 7 has no `messages` list"),
        ({"messages": [USER, {"role": "robot", "content": "x"}]}, "row 7 has the role 'robot'"),
    ],
)
def test_a_bad_row_is_named(row, message) -> None:
    with pytest.raises(corpus.CorpusError, match=message):
        corpus.as_messages(row, "messages", 7, {})


def test_instruction_rows_and_placeholders() -> None:
    row = {"instruction": "Who?", "input": "Tell {{name}}.", "output": "I am {{name}}."}
    assert corpus.as_messages(row, "instruction", 0, {"name": "Ada"}) == [
        {"role": "user", "content": "Who?\n\nTell Ada."},
        {"role": "assistant", "content": "I am Ada."},
    ]
    with pytest.raises(corpus.CorpusError, match="row 3 has no text in output"):
        corpus.as_messages({"instruction": "x"}, "instruction", 3, {})


def test_split_is_seeded_disjoint_and_refuses_too_few_rows() -> None:
    train, held_out = corpus.split(list(range(20)), 10, 5, seed=3)
    assert len(train) == 10 and len(held_out) == 5 and not set(train) & set(held_out)
    assert (train, held_out) == corpus.split(list(range(20)), 10, 5, seed=3)
    with pytest.raises(corpus.CorpusError, match="the corpus is empty"):
        corpus.split([], 1, 1, 0)
    with pytest.raises(corpus.CorpusError, match="evaluation_examples = 5, but the corpus has 5"):
        corpus.split(list(range(5)), 1, 5, 0)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_rows_are_read_from_every_format(tmp_path, suffix) -> None:
    rows = [{"messages": [USER, ASSISTANT]}, {"messages": [USER, ASSISTANT, USER, ASSISTANT]}]
    path = tmp_path / f"data{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    else:
        corpus.write_table(path, rows)
    assert corpus.read_rows(path) == rows
    with pytest.raises(corpus.CorpusError, match="does not exist"):
        corpus.read_rows(tmp_path / "absent.json")


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
        (Answer(0, [], 1, False), "", "empty"),
        (Answer(0, [5] * 4, 4, True), "cut", "truncated"),
        (Answer(0, [5], 2, False), "x", "too_short"),
        (Answer(0, [5] * 9, 10, False), "x", "too_long"),
        (Answer(0, [5] * 4, 5, False), "I cannot help", "refusal"),
        (Answer(0, [5] * 4, 5, False), "again", "duplicate"),
        (Answer(0, [5] * 4, 5, False), "new", None),
    ],
)
def test_filters(answer, text, reason) -> None:
    options = Filtering(min_length=2, max_length=8, refusal_pattern="^i cannot")
    assert rejection(text, len(answer.token_ids), answer.truncated, options, {"again"}) == reason
    assert rejection(text, len(answer.token_ids), answer.truncated, Filtering(enabled=False), {"again"}) == (
        "empty" if reason == "empty" else None
    )
