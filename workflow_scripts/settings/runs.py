"""From an experiment's file to its runs: `sweep` makes variants of it, `experiment.seeds` makes a run of each variant and seed.

A run is an experiment of its own in all that follows, with results under its own name: `<experiment>-seed<N>`, of a variant
`<experiment>-<key><value>-seed<N>`. Without `seeds` and `sweep` it is the experiment under the name of its file.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, JsonValue

from workflow_scripts.errors import UserError
from workflow_scripts.pipelines import LOCATIONS, TEACHER_SEEDS
from workflow_scripts.settings.section import Name, Text

if TYPE_CHECKING:
    from workflow_scripts.settings.schema import Settings

Values = Annotated[list[JsonValue], Field(min_length=1)]
Grid = Annotated[dict[Text, Values], Field(min_length=1)]
Sweep = Annotated[dict[Name, Grid], Field(min_length=1)]


class SettingsError(UserError):
    """A configuration that cannot be used; the message has one line per fault."""


def variants(name: str, grid: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """Overlays of a swept experiment by the variants' names. Raises SettingsError where two values make one name."""
    for key, values in grid.items():
        if key.startswith("experiment."):
            raise SettingsError(f"sweep.{name}: {key} makes no other method: name the seeds of its runs in experiment.seeds")
        if repeated := [value for n, value in enumerate(values) if value in values[:n]]:
            raise SettingsError(f"sweep.{name}.{key} has {repeated[0]!r} twice: name each value once")
    last = [key.rpartition(".")[2] for key in grid]
    short = {key: end if last.count(end) == 1 else key for key, end in zip(grid, last, strict=True)}
    found: dict[str, dict[str, Any]] = {}
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        variant = "-".join([name, *(_safe(f"{short[key]}{_text(value)}") for key, value in chosen.items())])
        if variant in found:
            raise SettingsError(f"sweep.{name}: two of its values make the name {variant!r}: leave one of them out")
        overlay: dict[str, Any] = {}
        for key, value in chosen.items():
            *parents, end = key.split(".")
            place = overlay
            for part in parents:
                place = place.setdefault(part, {})
            place[end] = value
        found[variant] = overlay
    return found


def runs_of(name: str, settings: Settings) -> dict[str, Settings]:
    """The runs of one variant, one per seed, by their names. Teacher stages are measured `replicates` times, in turn."""
    experiment = settings.experiment
    found = {}
    for number, seed in enumerate(experiment.seeds or [experiment.seed]):
        replicate = number % experiment.replicates + 1 if experiment.seeds else experiment.replicate
        own = {"seed": seed, "seeds": None, "replicates": 1, "replicate": replicate}
        run = settings.model_copy(update={"experiment": experiment.model_copy(update=own)})
        if experiment.seeds and settings.wandb.run_name:
            run = with_value(run, "wandb.run_name", f"{settings.wandb.run_name}-seed{seed}")
        if experiment.teacher_seeds:
            for key in TEACHER_SEEDS:
                run = with_value(run, key, seed)
        for key in LOCATIONS if replicate > 1 and not settings.synthetic_data.use_existing else ():
            path = attrgetter(key)(settings)
            run = with_value(run, key, path and f"{path}-replicate{replicate}")
        found[f"{name}-seed{seed}" if experiment.seeds else name] = run
    return found


def method_of(run: str) -> str:
    """Name of the method that a run of several is one of, by the run's name; another name is left as it is."""
    return re.sub(r"-seed\d+$", "", run)


def with_value(settings: BaseModel, key: str, value: Any) -> Any:
    """Settings with another value of a key of sections."""
    first, _, rest = key.partition(".")
    return settings.model_copy(update={first: with_value(getattr(settings, first), rest, value) if rest else value})


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool | None) else str(value)


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_")
