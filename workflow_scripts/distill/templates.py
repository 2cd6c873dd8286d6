"""Chat templates with assistant markers: installed, checked once, rendered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from workflow_scripts.distill.rows import Messages, RowFault
from workflow_scripts.errors import UserError

SHIPPED = Path(__file__).parent / "chat_templates"


class TemplateError(UserError):
    """A chat template that cannot say which tokens are the assistant's."""


@dataclass(frozen=True)
class Template:
    """What a chat template does: the roles that it renders, and the token that ends an assistant's turn."""

    roles: frozenset[str]
    end_id: int


def render(tokenizer: Any, messages: Messages) -> tuple[str, list[tuple[int, int]]] | RowFault:
    """Text of a conversation and the spans of characters between the assistant markers, or why the template refuses it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        (text,), (spans,) = render_jinja_template(
            conversations=[messages],
            chat_template=tokenizer.chat_template,
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
    except jinja2.TemplateError as error:
        return RowFault("the chat template refuses it", str(error))
    return text, spans


def check_template(tokenizer: Any, choice: str) -> Template:
    """What the installed template does with a conversation of every role.

    Raises TemplateError unless the markers hold the assistant's words and its end token, and nothing of the user's.
    """
    turns = [{"role": role, "content": text} for role, text in (("user", "Ask"), ("assistant", "Say"), ("user", "More"))]
    turns.append({"role": "assistant", "content": "Last"})
    found = render(tokenizer, turns)
    if isinstance(found, RowFault):
        raise TemplateError(f"model.chat_template = {choice!r}: it refuses user, assistant, user, assistant: {found.detail}")
    text, spans = found
    marked = [text[begin:end] for begin, end in spans]
    if len(marked) != 2 or any(said not in part for said, part in zip(("Say", "Last"), marked, strict=True)):
        raise TemplateError(
            f"model.chat_template = {choice!r}: its {{% generation %}} markers hold {marked}, not one answer each: wrap the "
            "content of every assistant turn and its end token"
        )
    if any(asked in part for asked in ("Ask", "More") for part in marked):
        raise TemplateError(
            f"model.chat_template = {choice!r}: its markers hold the user's turn: move {{% generation %}} after it"
        )
    control = tokenizer.added_tokens_decoder
    ends = [tokenizer(part, add_special_tokens=False)["input_ids"][-1] for part in marked]
    if any(end not in control for end in ends):
        rest = tokenizer(text[spans[-1][1] :].lstrip(), add_special_tokens=False)["input_ids"]
        outside = control[rest[0]].content if rest and rest[0] in control else None
        remedy = f"move {outside} before" if outside else "write {{ eos_token }} before"
        raise TemplateError(
            f"model.chat_template = {choice!r}: no end token within the markers, so a student never learns to stop: {remedy} "
            "{% endgeneration %}"
        )
    said = [
        ("system", [{"role": "system", "content": "Rule"}, *turns]),
        ("tool", [*turns[:2], {"role": "tool", "content": "Rule"}]),
    ]
    roles = {role for role, probe in said if not isinstance(seen := render(tokenizer, probe), RowFault) and "Rule" in seen[0]}
    return Template(frozenset(roles | {"user", "assistant"}), ends[-1])


def install_chat_template(tokenizer: Any, choice: str) -> None:
    """Give `tokenizer` the chat template named by `model.chat_template`.

    `choice` is the name of a shipped template, the path of a .jinja file, or `tokenizer` for the tokenizer's own.
    Raises TemplateError when it does not exist or has no {% generation %} markers.
    """
    if choice != "tokenizer":
        path = Path(choice) if choice.endswith(".jinja") else SHIPPED / f"{choice}.jinja"
        if not path.is_file():
            shipped = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.jinja")))
            raise TemplateError(f"model.chat_template = {choice!r}: {path} does not exist; shipped templates: {shipped}")
        tokenizer.chat_template = path.read_text(encoding="utf-8")
    if not tokenizer.chat_template:
        raise TemplateError(
            f"model.chat_template = {choice!r}: the tokenizer has no chat template: name a shipped one or a .jinja file"
        )
    if "{% generation" not in tokenizer.chat_template and "{%- generation" not in tokenizer.chat_template:
        raise TemplateError(
            f"model.chat_template = {choice!r}: the template has no {{% generation %}} markers, so the assistant's tokens "
            "cannot be told from the user's: wrap the assistant's content and its end token in "
            "{% generation %} … {% endgeneration %}, save it as a .jinja file and name that file"
        )
