"""The base of all configuration sections, and the kinds of text in them."""

from __future__ import annotations

import re
import typing
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints, model_validator

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Text = Annotated[str, StringConstraints(min_length=1)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


_NUMBER = re.compile(r"[+-]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][+-]?\d+)?")


class Section(BaseModel):
    """Base of all sections: strict types, no unknown keys, immutable. Text that is a number is one where a number is wanted:
    YAML 1.1 reads 2e-5 as text, and `--config` makes text of all nested values.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _text_that_is_a_number(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        return {
            name: _numbers(value, cls.model_fields[name].annotation) if name in cls.model_fields else value
            for name, value in content.items()
        }


def _numbers(value: Any, annotation: Any) -> Any:
    """A value, or the items of a list, with text that is a number turned into it where the annotation wants one."""
    if not isinstance(value, (str, float, list)):
        return value
    kinds = _kinds(annotation)
    return [_number(item, kinds) for item in value] if isinstance(value, list) else _number(value, kinds)


def _kinds(annotation: Any) -> set[Any]:
    """The types in an annotation, those of a list's items among them."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) in (dict, typing.Literal) or not arguments:
        return {annotation}
    return {kind for argument in arguments for kind in _kinds(argument)}


def _number(value: Any, kinds: set[Any]) -> Any:
    """The number that a text (or, for an integer, a whole float) is; anything else as it is, for pydantic to judge."""
    if str in kinds or not kinds & {int, float}:
        return value
    number = value
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        plain = value.strip().replace("_", "")
        number = int(plain) if plain.lstrip("+-").isdigit() else float(plain)
    if isinstance(number, float) and float not in kinds:
        return int(number) if number.is_integer() else value
    return number
