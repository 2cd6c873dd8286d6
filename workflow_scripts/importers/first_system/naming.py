"""Which experiment, pipeline and stage of ours a stage of the first system is.

The first system named every stage after its experiment, so that neither its id nor its file says what was done. Words in the
id or the folder say it, else it is the pipeline's training. What is guessed is in the report; `--stage` overrides it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workflow_scripts.errors import UserError
from workflow_scripts.importers.first_system.files import Json, Source
from workflow_scripts.importers.first_system.values import Report, nested
from workflow_scripts.pipelines import IN_SUMMARY, PIPELINES

GUIDE = {"synthetic_generation": "teacher_generation", "preference_dataset": "teacher_generation", "burn_in": "prerun"}
WORDS = (
    (r"preprocess", "preprocess"),
    (r"logit|logprob", "logit_caching"),
    (r"preference|synthetic|generation", "teacher_generation"),
    (r"burn_in|prerun", "prerun"),
    (r"(?:^|[^a-z])(?:eval|olmes|benchmark|mt_bench)", "evaluation"),
)
COMPARED = {"optimizer": "optimizer", "schedule": "schedule_type", "token budget": "token_budget", "dtype": "dtype"}
NO_SETTINGS = ("experiment", "wandb", "output", "benchmark", "hardware", "energy")  # of the first system: change no result
REPEATED = re.compile(r"__(\d+)$")


@dataclass
class Experiment:
    """Stages of one experiment by our names, `stages`; `pipeline` is `unknown` where nothing tells it."""

    name: str
    pipeline: str
    stages: dict[str, Source]
    config: Json


@dataclass(frozen=True)
class Given:
    """What the user says of stages, by their id or folder: which stage of ours they are, and whose experiments."""

    stages: Mapping[str, str] = field(default_factory=dict)
    experiments: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def stage(self, source: Source) -> str | None:
        """Our stage name, None where nothing was said."""
        return next((self.stages[name] for name in source.names if name in self.stages), None)

    def owners(self, source: Source) -> Sequence[str]:
        """Names of experiments, none where nothing was said."""
        return next((self.experiments[name] for name in source.names if name in self.experiments), ())

    def check(self, sources: Sequence[Source]) -> None:
        """Raise UserError when a name is that of nothing that was read."""
        read = sorted({name for source in sources for name in source.names})
        if wrong := sorted({*self.stages, *self.experiments} - set(read)):
            raise UserError(
                f"--stage/--into {', '.join(wrong)}: no stage or stage folder of this name was read, "
                f"there are {', '.join(read) or 'none'}"
            )


@dataclass(frozen=True)
class Identity:
    """A source's experiment, pipeline and stage by our names, and on what ground where the stage is a guess."""

    name: str
    pipeline: str
    stage: str
    why: str | None


def identify(source: Source, given: Given, sources: Sequence[Source]) -> Identity:
    """What a source is; a process went on when it ran `<id>__2` after it in the same run folder."""
    name = experiment_name(source)
    pipeline = _pipeline(source, name)
    went_on = any(s.run == source.run and s.stage_id == f"{source.stage_id}__2" for s in sources)
    return Identity(name, pipeline, *_stage(source, pipeline, given, went_on))


def same_stage(one: Source, other: Source, given: Given, sources: Sequence[Source]) -> bool:
    """Whether the runs of two sources are attempts of one stage: the same id, experiment, settings and seed."""
    if one.stage_id != other.stage_id or given.owners(one) != given.owners(other):
        return False
    ours, theirs = identify(one, given, sources), identify(other, given, sources)
    settled = not one.config or not other.config or settings(one.config) == settings(other.config)
    return (ours.name, ours.stage) == (theirs.name, theirs.stage) and settled


def settings(config: Json) -> dict[str, Any]:
    """What of a configuration changes results, the seed among it."""
    return {key: value for key, value in config.items() if key not in NO_SETTINGS} | {"seed": nested(config, "experiment.seed")}


def experiments(sources: Sequence[Source], given: Given, report: Report) -> list[Experiment]:
    """Sort stages into experiments.

    Two stages of one kind under one experiment's name that differ in their settings are two experiments. A stage that the user
    gives to several experiments is in each of them.
    """
    found: dict[str, Experiment] = {}
    asked = {name for names in given.experiments.values() for name in names}
    for source in sources:
        own = identify(source, given, sources)
        if own.why:
            text = f"stage {source.stage_id} is taken for {own.stage}: {own.why} (--stage says otherwise)"
            report.add("noted", source.folder, text)
        for name in given.owners(source) or (own.name,):
            _place(found, name, own.pipeline, own.stage, source, report, name in asked)
    return list(found.values())


def _place(
    found: dict[str, Experiment], name: str, pipeline: str, stage: str, source: Source, report: Report, asked: bool
) -> None:
    """Put a stage into the experiment of that name; the training says its pipeline and configuration.

    Stages of two pipelines are of two experiments, unless the user `asked` for stages of other folders in this one.
    """
    experiment = found.get(name)
    if experiment is not None and (stage in experiment.stages or not (asked or experiment.pipeline == pipeline)):
        base = _plain_name(source.folder.name)
        candidates = itertools.chain([base], (f"{base}-{n}" for n in itertools.count(2)))
        other = next(candidate for candidate in candidates if candidate not in found)
        report.add("noted", source.folder, f"a second {stage} of experiment {name}: it becomes experiment {other}")
        name, experiment = other, None
    if experiment is None:
        experiment = found.setdefault(name, Experiment(name, pipeline, {}, source.config))
    elif IN_SUMMARY[stage].role == "student":
        experiment.pipeline, experiment.config = pipeline, source.config
    experiment.stages[stage] = source
    source.shared_by.append(name)


def experiment_name(source: Source) -> str:
    """By the configuration, the summary, the stage, which the first system named after it, else the run folder."""
    named = nested(source.config, "experiment.name") or source.summary.get("experiment_name")
    if not named:
        stage = REPEATED.sub("", source.stage_id)
        named = source.run.resolve().name if stage in {*IN_SUMMARY, *GUIDE} else stage
    return _plain_name(str(named))


def _plain_name(text: str) -> str:
    """A name that is a folder's."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_.-") or "experiment"


def _pipeline(source: Source, name: str) -> str:
    pipeline = source.config.get("pipeline")
    if pipeline in PIPELINES:
        return str(pipeline)
    words = re.split(r"[^a-z]+", f"{name} {' '.join(source.names)}".lower())
    named = [word for word in PIPELINES if word in words]
    if len(named) == 1:
        return named[0]
    return "sft" if not named and "synthetic" in words else "unknown"


def _stage(source: Source, pipeline: str, given: Given, went_on: bool) -> tuple[str, str | None]:
    """Our stage name, and on what ground where it is a guess; the process `went_on` when it ran `<id>__2` after it."""
    if stage := given.stage(source):
        return stage, None
    plain = REPEATED.sub("", source.stage_id)
    if plain in IN_SUMMARY or plain in GUIDE:
        return GUIDE.get(plain, plain), None
    places = [("id", source.stage_id), *(("folder", path.name) for path in (source.folder, *source.others))]
    for place, text in places:
        for pattern, stage in WORDS:
            if word := re.search(pattern, text.lower()):
                return stage, f"its {place} says {word[0].strip('_-')!r}"
    if pipeline in ("sft", "dpo") and went_on:
        return "teacher_generation", f"the same process went on with {source.stage_id}__2"
    why = f"the training of pipeline {pipeline}, nothing says that it is another stage"
    return PIPELINES[pipeline].training if pipeline in PIPELINES else "student_train", why


def comparable(config: Json) -> dict[str, Any]:
    """What compared experiments should agree on, as far as the configuration says."""
    training = config.get("training")
    if not isinstance(training, Mapping):
        return {}
    batch, steps = training.get("batch_size"), training.get("gradient_accumulation_steps")
    found = {name: training.get(key) for name, key in COMPARED.items()}
    found["seed"] = nested(config, "experiment.seed")
    found["effective batch"] = batch * steps if isinstance(batch, int) and isinstance(steps, int) else None
    return {key: value for key, value in found.items() if value is not None}
