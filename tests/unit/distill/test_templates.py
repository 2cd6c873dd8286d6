"""Chat templates: what their markers hold is checked once, and the spans are the tokens that carry loss."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from tests.unit.distill.test_olmo2_template import END, tokenizer  # noqa: F401
from workflow_scripts.distill import corpus
from workflow_scripts.distill.rows import RowFault
from workflow_scripts.distill.templates import SHIPPED, TemplateError, check_template, install_chat_template

ANSWER = "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
OTHERS = "<|{{ m.role }}|>{{ m.content }}"
TURN = "{% for m in messages %}{% if m.role == 'assistant' %}ANSWER{% else %}" + OTHERS + "{% endif %}{% endfor %}"
CHAT = [{"role": role, "content": text} for role, text in (("user", "Hi?"), ("assistant", "Ho."))]


def install(tokenizer: Any, tmp_path: Path, template: str) -> str:  # noqa: F811
    path = tmp_path / "own.jinja"
    path.write_text(template)
    install_chat_template(tokenizer, str(path))
    return str(path)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            TURN.replace("ANSWER", "{% generation %}{{ m.content }}{% endgeneration %}{{ eos_token }}\n"),
            r"no end token within the markers, .*: move <\|endoftext\|> before \{% endgeneration %\}",
        ),
        (
            TURN.replace("ANSWER", "{% generation %}{{ m.content }}{% endgeneration %}\n"),
            r"no end token within the markers, .*: write \{\{ eos_token \}\} before",
        ),
        (
            "{% generation %}{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}{% endgeneration %}",
            "not one answer each",
        ),
        (
            TURN.replace("ANSWER", "{% generation %}{{ eos_token }}{% endgeneration %}{{ m.content }}"),
            "not one answer each",
        ),
        (
            "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ messages[loop.index0 - 1].content }}"
            "{{ m.content }}"
            "{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}",
            "its markers hold the user's turn",
        ),
        (
            "{% generation %}{{ raise_exception('no chat') }}{% endgeneration %}",
            "it refuses user, assistant, user, assistant: no chat",
        ),
    ],
)
def test_markers_that_hold_too_little_or_too_much_are_refused(
    tokenizer: Any,  # noqa: F811
    tmp_path: Path,
    template: str,
    words: str,
) -> None:
    choice = install(tokenizer, tmp_path, template)
    with pytest.raises(TemplateError, match=words):
        check_template(tokenizer, choice)


def test_a_span_at_the_first_token_ends_where_the_answer_ends(tokenizer: Any, tmp_path: Path) -> None:  # noqa: F811
    """transformers takes an end at token 0 for none and marks everything that follows."""
    check_template(tokenizer, install(tokenizer, tmp_path, TURN.replace("ANSWER", ANSWER)))
    turns = [{"role": "assistant", "content": ""}, *CHAT]
    (row,) = corpus.tokenise_all(tokenizer, [turns], 100)
    marked = itertools.groupby(zip(row["loss_mask"].tolist(), row["input_ids"].tolist(), strict=True), lambda pair: pair[0])
    runs = [(on, tokenizer.decode([token for _, token in run])) for on, run in marked]
    assert runs == [(1, END), (0, "<|user|>Hi?"), (1, f"Ho.{END}")]


def test_which_roles_a_template_renders_and_where_it_ends(tokenizer: Any, tmp_path: Path) -> None:  # noqa: F811
    found = check_template(tokenizer, install(tokenizer, tmp_path, TURN.replace("ANSWER", ANSWER)))
    assert found.roles == {"system", "user", "assistant", "tool"} and found.end_id == tokenizer.eos_token_id
    without = TURN.replace("ANSWER", ANSWER).replace("{% else %}", "{% elif m.role == 'user' %}")
    assert check_template(tokenizer, install(tokenizer, tmp_path, without)).roles == {"user", "assistant"}


@pytest.mark.parametrize("shipped", sorted(path.stem for path in SHIPPED.glob("*.jinja")))
def test_the_shipped_templates_hold(tokenizer: Any, shipped: str) -> None:  # noqa: F811
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    install_chat_template(tokenizer, shipped)
    end = {"olmo2": END, "smollm2": "<|im_end|>"}[shipped]
    found = check_template(tokenizer, shipped)
    assert found.end_id == tokenizer.convert_tokens_to_ids(end) and {"system", "user", "assistant"} <= found.roles


def test_a_conversation_that_the_template_refuses_is_a_fault_of_its_row(tokenizer: Any, tmp_path: Path) -> None:  # noqa: F811
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('must begin with user') }}{% endif %}" + TURN.replace(
        "ANSWER", ANSWER
    )
    assert check_template(tokenizer, install(tokenizer, tmp_path, strict)).roles == {"user", "assistant", "tool"}
    good, bad = corpus.tokenise_all(tokenizer, [CHAT, CHAT[1:]], 100)
    assert isinstance(bad, RowFault) and (bad.reason, bad.detail) == ("the chat template refuses it", "must begin with user")
    assert not isinstance(good, RowFault) and corpus.loss_tokens(good) == len("Ho.") + 1
