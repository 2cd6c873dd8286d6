"""The base of our documents: JSON files with a schema, read and written as types."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from workflow_scripts.artefact import ArtefactError, read_json

M = TypeVar("M", bound=BaseModel)


class Closed(BaseModel):
    """Part of a document of ours: unknown keys are refused. What is computed from other fields is not read, but computed."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _without_computed(cls, content: Any) -> Any:
        if isinstance(content, dict) and cls.model_computed_fields:
            return {key: value for key, value in content.items() if key not in cls.model_computed_fields}
        return content


class Open(BaseModel):
    """Facts of which some are named here: others are kept, and what was not given is not written."""

    model_config = ConfigDict(extra="allow")

    @model_serializer(mode="wrap")
    def _as_given(self, handler: SerializerFunctionWrapHandler) -> Any:
        return {key: value for key, value in handler(self).items() if key in self.model_fields_set}


def validated(model: type[M], content: Any, path: Path) -> M:
    """Content of a file as a type. Raises ArtefactError that names the file, what is wrong and what to do."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtefactError(f"{path}: {where}: {first['msg']}: delete it and make it again") from None


class Document(Closed):
    """A JSON file of ours, with its schema's name in `schema`."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file. Raises ArtefactError that names the file, what is wrong and what to do."""
        content, wanted = read_json(path), cls.model_fields["schema_"].default
        found = content.get("schema") if isinstance(content, dict) else type(content).__name__
        if found != wanted:
            raise ArtefactError(f"{path}: schema {found!r}, this program reads {wanted}")
        return validated(cls, content, path)

    def content(self) -> dict[str, Any]:
        """What is written to the file."""
        return self.model_dump(mode="json", by_alias=True)


def is_none(value: object) -> bool:
    """Fields that are not written when they are None."""
    return value is None
