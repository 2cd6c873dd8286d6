"""Read, merge and validate configuration: base.yaml < shared/<name>.yaml < experiments/<name>.yaml < command line.

A file of config/shared holds what several experiments have in common; an experiment names it with the key `extends`, and it
may extend another one itself.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from workflow_scripts.pipelines import STAGES, rules
from workflow_scripts.settings.evaluation import FOLLOWED
from workflow_scripts.settings.runs import Grid, SettingsError, Sweep, runs_of, variants, with_value
from workflow_scripts.settings.schema import CAMPAIGN_SECTIONS, Settings

EXPERIMENT_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
RESERVED_NAMES = ("models", "corpus", "teacher", "reference", "state", "downloads", "all", *STAGES, *rules())
_SECRET = re.compile(r"key|token|secret|password", re.IGNORECASE)  # as in wandb.api_key, which belongs into WANDB_API_KEY
EXTENDS = "extends"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml is ten times as fast
    """A safe loader that refuses a key that stands twice in one mapping: the second would silently replace the first."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping. Raises SettingsError with key and both lines."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key.value, str) and lines.setdefault(key.value, line) != line:
                raise SettingsError(f"key `{key.value}` stands in line {lines[key.value]} and in line {line}: make them one")
        return cast(dict[Any, Any], super().construct_mapping(node, deep))


class Experiments(dict[str, Settings]):
    """Settings by the name of the run.

    `runs` are the runs of an experiment or of a variant by its name, `methods` the variants by the names of their runs.
    `set_aside` says why an experiment that nothing asks for cannot be had, by its name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.runs: dict[str, list[str]] = {}
        self.methods: dict[str, str] = {}
        self.set_aside: dict[str, str] = {}

    def add(self, name: str, variant: str, settings: Settings) -> None:
        """Take the runs of a variant of the experiment `name`. Raises SettingsError for a name that is taken."""
        found = runs_of(variant, settings)
        for run in {variant, *found} - {name}:
            if run in self.runs or run in self:
                raise SettingsError(f"{run!r} is the name of two runs: rename the file of one of their experiments")
        self.update(found)
        self.methods |= dict.fromkeys(found, variant)
        for target in {name, variant}:
            self.runs.setdefault(target, []).extend(found)

    def compared(self) -> list[str]:
        """All runs of the compared experiments."""
        names = next(iter(self.values())).comparison.experiments if self else []
        return list(dict.fromkeys(run for name in names for run in self.runs.get(name, [name])))

    def needed(self) -> list[str]:
        """The compared runs and those whose policies they start from."""
        found = self.compared()
        for name in found:
            policy = self[name].model.policy if name in self else None
            if policy is not None:
                found += [run for run in self.runs.get(policy, [policy]) if run not in found]
        return found

    def leave_out(self, why: Mapping[str, str]) -> None:
        """Set runs aside with the reason, then those that start from the policy of one that is set aside."""
        while why:
            for name, reason in why.items():
                self.set_aside |= {name: reason, self.methods[name]: reason}
                del self[name]
            why = followers(self, self.set_aside)

    def policy(self, name: str) -> str:
        """The run that this run starts from: its policy's only run, or that of the same seed. Raises SettingsError."""
        policy, seed = str(self[name].model.policy), self[name].experiment.seed
        if policy in self:
            return policy
        if policy not in self.runs:
            raise SettingsError(f"{name}: model.policy = {policy!r} is no experiment{_nearest(policy, self.runs)}")
        if len({self.methods[run] for run in self.runs[policy]}) > 1:
            listed = ", ".join(dict.fromkeys(self.methods[run] for run in self.runs[policy]))
            raise SettingsError(f"{name}: model.policy = {policy!r} is swept: name one of its variants ({listed})")
        same = [run for run in self.runs[policy] if self[run].experiment.seed == seed]
        if not same:
            listed = ", ".join(self.runs[policy])
            raise SettingsError(
                f"{name}: model.policy = {policy!r} has no run of seed {seed} ({listed}): add it to experiment.seeds of "
                f"{policy}, or name one of its runs"
            )
        return same[0]


def deep_merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Merge mappings key by key; any other value of `overlay` replaces that of `base`."""
    merged = dict(base)
    for key, value in overlay.items():
        old = merged.get(key)
        merged[key] = deep_merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises SettingsError when the file is missing, unreadable, no mapping, or has a key twice."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise SettingsError(f"configuration file {path} does not exist") from None
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must hold a mapping of keys, not {type(content).__name__}")
    return content


def read_extended(path: Path, shared: Path, readers: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read an experiment's file, or a shared one, over what it extends. `readers` are the files that extend it.

    Raises SettingsError when the file that `extends` names does not exist, or extends in a circle, and for a section that holds
    for the whole campaign.
    """
    content = read_yaml(path)
    for section in CAMPAIGN_SECTIONS:
        if section in content:
            raise SettingsError(
                f"{path}: `{section}` holds for the whole campaign, so that experiments stay comparable: "
                "set it in config/base.yaml or with --configfile"
            )
    if EXTENDS not in content:
        return content
    name = content.pop(EXTENDS)
    known = [file.stem for file in sorted(shared.glob("*.yaml"))]
    if name not in known:
        raise SettingsError(f"{path}: extends = {name!r} is no file of {shared}{_nearest(str(name), known)}")
    parent = shared / f"{name}.yaml"
    if parent in (*readers, path):
        raise SettingsError(f"{path}: extends = {name!r} goes in a circle")
    return deep_merge(read_extended(parent, shared, (*readers, path)), content)


def validate(raw: Mapping[str, Any], where: str) -> Settings:
    """Validate a merged configuration. Raises SettingsError with one line per fault."""
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(cast(dict[str, Any], fault), where) for fault in error.errors()]
        raise SettingsError("\n".join(lines)) from None


def load_experiments(config_dir: Path, base: Mapping[str, Any], overrides: Mapping[str, Any]) -> Experiments:
    """Load every `config_dir/experiments/*.yaml` over `base`, `overrides` (command line) on top of both.

    Returns the settings by experiment name (the file's stem), sorted. Raises SettingsError naming file, key and remedy. The
    command line may not fit an experiment that it was not meant for: unless that is compared, it is set aside.
    """
    experiments = Experiments()
    sweep = _swept(deep_merge(base, overrides).get("sweep"))
    for path in sorted((config_dir / "experiments").glob("*.y*ml")):
        if path.suffix != ".yaml":
            raise SettingsError(f"{path}: experiments are .yaml files: rename it")
        if not EXPERIMENT_NAME.match(path.stem):
            raise SettingsError(
                f"{path}: the experiment name {path.stem!r} may have letters, digits, '_' and '-' only: rename the file"
            )
        if path.stem in RESERVED_NAMES:
            raise SettingsError(f"{path}: {path.stem!r} is the name of a results folder or target: rename the file")
        overlay = read_extended(path, config_dir / "shared")
        merged = deep_merge(deep_merge(base, overlay), overrides) | {"sweep": None}
        grid = sweep.pop(path.stem, None)
        overlays = variants(path.stem, grid) if grid else {path.stem: {}}
        where = f"{path} with sweep.{path.stem}" if grid else str(path)
        try:
            found = {variant: validate(deep_merge(merged, own), where) for variant, own in overlays.items()}
        except SettingsError as error:
            if not overrides or grid:
                raise
            experiments.set_aside[path.stem] = str(error)
            continue
        for variant, settings in found.items():
            experiments.add(path.stem, variant, settings)
    for name in sweep:
        raise SettingsError(f"sweep.{name}: {name!r} is no experiment{_nearest(name, experiments.runs)}")
    asked_for = experiments.needed() if experiments else list(experiments.set_aside)
    if reasons := [experiments.set_aside[name] for name in asked_for if name in experiments.set_aside]:
        raise SettingsError(reasons[0])
    experiments.leave_out(followers(experiments, experiments.set_aside))
    if not experiments:
        raise SettingsError(f"no experiment found: {config_dir / 'experiments'} holds no .yaml file")
    unfit = {}
    for name, settings in experiments.items():
        if settings.model.policy is not None:
            try:
                experiments[name] = with_value(settings, "model.policy", experiments.policy(name))
            except SettingsError as error:
                if not overrides or name in asked_for:
                    raise
                unfit[name] = str(error)
    experiments.leave_out(unfit)
    _check_references(experiments)
    return experiments


def _swept(raw: Any) -> dict[str, Grid]:
    """The section `sweep` of the campaign. Raises SettingsError."""
    if raw is None:
        return {}
    try:
        found: dict[str, Grid] = TypeAdapter(Sweep).validate_python(raw, strict=True)
    except ValidationError as error:
        faults = [cast(dict[str, Any], fault) for fault in error.errors()]
        lines = [_explain(fault | {"loc": ("sweep", *fault["loc"])}, "campaign") for fault in faults]
        raise SettingsError("\n".join(lines)) from None
    for name, key in ((name, key) for name, grid in found.items() for key in grid):
        if (section := key.partition(".")[0]) in CAMPAIGN_SECTIONS:
            raise SettingsError(f"sweep.{name}: {key} cannot be swept: `{section}` holds for the whole campaign")
    return found


def followers(experiments: Mapping[str, Settings], set_aside: Mapping[str, str]) -> dict[str, str]:
    """Experiments that start from the policy of one that is set aside, with its reason."""
    policies = {name: s.model.policy for name, s in experiments.items() if s.model.policy is not None}
    return {name: set_aside[policy] for name, policy in policies.items() if policy in set_aside}


def first_student(experiments: Mapping[str, Settings], name: str) -> str:
    """The model that the first of an experiment's trainings starts from, be it that of its policy."""
    model = experiments[name].model
    while model.policy is not None:
        model = experiments[model.policy].model
    return model.student


def _check_references(experiments: Experiments) -> None:
    for name, settings in experiments.items():
        policy, seen = settings.model.policy, [name]
        while policy is not None:
            if policy in seen:
                raise SettingsError(f"{name}: model.policy goes in a circle: {' -> '.join([*seen, policy])}")
            seen.append(policy)
            policy = experiments[policy].model.policy
    comparison = next(iter(experiments.values())).comparison
    baseline = [comparison.baseline] if comparison.baseline else []
    for name in [*comparison.experiments, *baseline]:
        if name not in experiments.runs and name not in experiments:
            raise SettingsError(f"comparison: {name!r} is no experiment{_nearest(name, experiments.runs)}")
    compared = experiments.compared()
    _check_quality(experiments, comparison.quality, compared)
    for name in baseline:
        runs = experiments.runs.get(name, [name])
        if not set(runs) <= set(compared):
            raise SettingsError(f"comparison.baseline = {name!r} must be one of comparison.experiments")
        students = {experiments.methods[run]: first_student(experiments, run) for run in runs if run in experiments}
        if len(set(students.values())) < len(students):
            raise SettingsError(
                f"comparison.baseline = {name!r} is swept and variants start from one model: name one of {', '.join(students)}"
            )


def _check_quality(experiments: Mapping[str, Settings], quality: str, compared: list[str]) -> None:
    """A metric of a task is there only where the task is run; a group of tasks brings metrics of others' names."""
    if "/" not in quality:
        return
    for name in (name for name in compared if name in experiments):
        asked = experiments[name].evaluation
        if quality == FOLLOWED and not asked.instruction_prompts:
            raise SettingsError(f"{name}: comparison.quality = {quality!r}, but evaluation.instruction_prompts is 0: raise it")
        if quality != FOLLOWED and not asked.lm_eval_tasks:
            raise SettingsError(
                f"{name}: comparison.quality = {quality!r}, but its evaluation.lm_eval_tasks is empty: add "
                f"{quality.partition('/')[0]!r} there, for every compared experiment"
            )


def _nearest(word: str, known: Any) -> str:
    match = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {match[0]!r}?" if match else f" (known: {', '.join(sorted(known))})"


def _explain(fault: dict[str, Any], where: str) -> str:
    location = [str(part) for part in fault["loc"]]
    key = ".".join(location) or "configuration"
    value = fault["input"]
    if location == [EXTENDS]:
        return f"{where}: {EXTENDS} = {value!r} belongs in a file of config/experiments or config/shared: move it there"
    if fault["type"] == "extra_forbidden":
        shown = " (its value is not shown)" if _SECRET.search(location[-1]) else f" = {value!r}"
        return f"{where}: unknown key {key}{shown}{_nearest(location[-1], _fields_at(location[:-1]))}"
    if fault["type"] == "missing":
        return f"{where}: key {key} is missing: add it to config/base.yaml or to the experiment"
    message = fault["msg"].removeprefix("Value error, ")
    if isinstance(value, dict):
        return f"{where}: {key}: {message}"
    return f"{where}: {key} = {value!r}: {message}"


def _fields_at(location: list[str]) -> list[str]:
    """Names of the keys that are known at `location`, following nested sections."""
    models: list[type[BaseModel]] = [Settings]
    for part in location:
        annotations = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        models = [found for a in annotations for found in models_in(a)] or models
    return sorted({name for model in models for name in model.model_fields} | ({EXTENDS} if not location else set()))


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Section models inside an annotation."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [found for argument in typing.get_args(annotation) for found in models_in(argument)]
