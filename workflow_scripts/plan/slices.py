"""What a rule reads: the slice of the configuration that makes its result stale, and nothing else.

A slice is a nested dictionary with the configuration's own names, cut by the key paths that the registry declares. Stages get
it as JSON and read it as a `Settings` of which only those keys exist: what a stage reads without declaring it fails at once.
Snakemake compares its leaves, one `key=value` each, so that a plan shows which key changed from what to what.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, TypeAdapter

from workflow_scripts.pipelines import LOCATIONS, PIPELINES, STAGES, Reads, Where
from workflow_scripts.settings import Settings, SettingsError

Content = dict[str, Any]  # a slice: nested, with the configuration's names
Model = TypeVar("Model", bound=BaseModel)
NAMED = ("models", "data.datasets")  # mappings whose entries are compared whole: their names are the user's
NOTHING = "-"  # stands for a key that this job of the rule does not read


def cut(settings: Settings, reads: Reads, ignores: Iterable[str] = ()) -> Content:
    """The keys of `reads`, those where a condition holds among them, without `ignores`. Raises KeyError for an unknown key."""
    content: Content = {}
    for read in reads:
        if isinstance(read, Where):
            if value_at(settings, read.key) == read.value:
                for key in read.reads:
                    _put(content, key, settings)
        else:
            _put(content, read, settings)
    for key in ignores:
        drop(content, key)
    return content


def value_at(settings: BaseModel, key: str) -> Any:
    """Value of a dotted key, as JSON has it. Raises KeyError when there is no such key."""
    value: Any = settings
    for part in key.split("."):
        if isinstance(value, BaseModel) and part in type(value).model_fields:
            value = getattr(value, part)
        elif isinstance(value, Mapping) and part in value:
            value = value[part]
        else:
            raise KeyError(f"{key} is no key of the configuration")
    return value


def _put(content: Content, key: str, settings: Settings) -> None:
    """Copy one dotted key; `<section.key>` in it is replaced by that key's value."""
    parts = [value_at(settings, part[1:-1]) if part.startswith("<") else part for part in re.findall(r"<[^>]+>|[^.<>]+", key)]
    value: Any = settings
    for part in parts:
        value = value[part] if isinstance(value, Mapping) else getattr(value, part)
    for part in parts[:-1]:
        content = content.setdefault(part, {})
    found = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    old = content.get(parts[-1])
    content[parts[-1]] = {**old, **found} if isinstance(old, dict) and isinstance(found, dict) else found


def drop(content: Content, key: str) -> None:
    """Remove a dotted key, and the sections that are empty then."""
    first, _, rest = key.partition(".")
    if rest and isinstance(content.get(first), dict):
        drop(content[first], rest)
    if not rest or content.get(first) == {}:
        content.pop(first, None)


def without_locations(content: Content) -> Content:
    """What decides the result. A data set that is adopted is what lies at its path, so there the path counts."""
    left: Content = json.loads(canonical(content))
    adopts = left.get("synthetic_data", {}).get("use_existing")
    for key in LOCATIONS:
        if not (adopts and key.startswith("synthetic_data.")):
            drop(left, key)
    return left


def leaves(content: Content, prefix: str = "") -> dict[str, Any]:
    """Values by dotted key."""
    found: dict[str, Any] = {}
    for name, value in content.items():
        key = f"{prefix}.{name}" if prefix else name
        if isinstance(value, dict) and prefix not in NAMED and value:
            found |= leaves(value, key)
        else:
            found[key] = value
    return found


def line(key: str, value: Any) -> str:
    """`key=value`, as Snakemake compares and prints it."""
    return f"{key}={json.dumps(value, sort_keys=True, ensure_ascii=False)}"


def read(text: str) -> Settings:
    """The part of the settings that a slice has; any other key raises AttributeError. Raises ValidationError for bad values."""
    return _partial(Settings, json.loads(text))


def _partial(model: type[Model], content: Mapping[str, Any]) -> Model:
    values = {}
    for name, value in content.items():
        if name not in model.model_fields:
            raise SettingsError(f"--settings: {name} is no key of {model.__name__}")
        field = model.model_fields[name]
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            values[name] = _partial(inner, value)
        else:
            kind: Any = Annotated[inner, *field.metadata] if field.metadata else inner
            adapter: TypeAdapter[Any] = TypeAdapter(kind)
            values[name] = adapter.validate_json(json.dumps(value))
    found = model.model_construct(set(values))
    vars(found).clear()
    vars(found).update(values)
    return found


def settings_fingerprint(text: str) -> str:
    """Short hash of canonical settings."""
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def canonical(content: BaseModel | Mapping[str, Any]) -> str:
    """JSON in which equal settings have equal text: validated values, sorted keys, no spaces."""
    values = content.model_dump(mode="json") if isinstance(content, BaseModel) else content
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def comparable(settings: Settings, student: str, policy: str | None = None) -> dict[str, object]:
    """What experiments that are compared should agree on; None where a pipeline has no such choice.

    `student` is the model that the first of its trainings started from, `policy` the method of the starting policy, where its
    run is one of several.
    """
    training = settings.training
    rows = training.batch_size * training.gradient_accumulation_steps
    packs = "training.packing" not in STAGES[PIPELINES[settings.pipeline].training].ignores
    return {
        "seed": settings.experiment.seed,
        "student": student,
        "starting model": policy or settings.model.policy or settings.model.student,
        "optimizer": training.optimizer,
        "schedule": training.schedule_type,
        "token budget": training.token_budget,
        "effective batch": f"{training.batch_tokens} tokens" if training.batch_tokens else rows,
        "dtype": training.dtype,
        "energy budget [kWh]": training.energy_budget_kwh or "none",
        "packing": training.packing if packs else None,
        "gradient checkpointing": training.gradient_checkpointing,
        "adapters": f"LoRA, rank {training.lora.rank}" if training.lora else "none",
        "compilation": training.compile,
        "intermediate evaluations": training.evaluated or "never",
    }
