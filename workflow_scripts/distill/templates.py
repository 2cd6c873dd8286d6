"""Chat templates with assistant markers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workflow_scripts.errors import UserError

SHIPPED = Path(__file__).parent / "chat_templates"


class TemplateError(UserError):
    """A chat template that cannot say which tokens are the assistant's."""


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
