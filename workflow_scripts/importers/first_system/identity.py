"""Which run, stage and experiment of ours the files of a stage of the first system are of.

A run is its stage id and start, over all folders; it is known by its latest file, its stretch of a power log, or a row of
CodeCarbon. Runs of one id, experiment, configuration and seed are attempts of one stage. The first system named every stage
after its experiment, so that neither its id nor its file says what was done. Words in the id or the folder say it, else it is
the pipeline's training. What is guessed is in the report; `--stage` overrides it.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workflow_scripts.errors import UserError
from workflow_scripts.importers.first_system.files import SUMMARY, Attempt, Json, Source, StageFile, Written
from workflow_scripts.importers.first_system.logs import Row, split
from workflow_scripts.importers.first_system.values import Report, local_time, nested, zone_offset
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
SAME_INSTANT_S = 120.0  # CodeCarbon and the summary are written some seconds after a stage's end
SAME_DURATION, SAME_START_S = 0.01, 0.05
STATED_TWICE = ("total_energy_joules", "tokens_processed")


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

    def owners(self, source: Source) -> Sequence[str]:
        """Names of experiments, none where nothing was said."""
        return next((self.experiments[name] for name in source.names if name in self.experiments), ())

    def check(self, sources: Sequence[Source]) -> None:
        """Raise UserError when a name is that of nothing that was read."""
        read = sorted({name for source in sources for name in source.names})
        if wrong := sorted({*self.stages, *self.experiments} - set(read)):
            there = f"there are {', '.join(read) or 'none'}"
            raise UserError(f"--stage/--into {', '.join(wrong)}: no stage or stage folder of this name was read, {there}")


def identify(source: Source, given: Given, sources: Sequence[Source]) -> tuple[str, str, str, str | None]:
    """A source's experiment, pipeline and stage by our names, and on what ground where the stage is a guess."""
    name = experiment_name(source)
    pipeline = source.config.get("pipeline")
    if pipeline not in PIPELINES:
        words = re.split(r"[^a-z]+", f"{name} {' '.join(source.names)}".lower())
        named = [word for word in PIPELINES if word in words] or ["sft" if "synthetic" in words else "unknown"]
        pipeline = named[0] if len(named) == 1 else "unknown"
    went_on = any(s.run == source.run and s.stage_id == f"{source.stage_id}__2" for s in sources)
    return name, pipeline, *_stage(source, pipeline, given, went_on)


def same_stage(one: Source, other: Source, given: Given, sources: Sequence[Source]) -> bool:
    """Whether the runs of two sources are attempts of one stage: the same id, experiment, settings and seed."""
    ours, theirs = ((*identify(s, given, sources)[:3], s.stage_id, given.owners(s)) for s in (one, other))
    mine, its = ({**result_settings(s.config), "seed": nested(s.config, "experiment.seed")} for s in (one, other))
    return ours == theirs and (not one.config or not other.config or mine == its)


def result_settings(config: Json) -> dict[str, Any]:
    """What of a configuration changes results, the seed apart; a debug run of a few steps is no attempt at the whole one."""
    debug = {"debug": nested(config, "experiment.debug_max_steps")} if nested(config, "experiment.debug_mode") else {}
    return debug | {key: value for key, value in config.items() if key not in NO_SETTINGS}


def experiments(sources: Sequence[Source], given: Given, report: Report) -> list[Experiment]:
    """Sort stages into experiments; the training says an experiment's pipeline and configuration.

    Two stages of one kind under one experiment's name that differ in their settings are two experiments. So are stages of two
    pipelines, unless the user asked for stages of other folders in one of them. A stage that is given to several is in each.
    """
    found: dict[str, Experiment] = {}
    asked = {name for names in given.experiments.values() for name in names}
    for source in sources:
        own, pipeline, stage, why = identify(source, given, sources)
        if why:
            report.add("noted", source.folder, f"stage {source.stage_id} is taken for {stage}: {why} (--stage says otherwise)")
        for name in given.owners(source) or (own,):
            known = found.get(name)
            if known is not None and (stage in known.stages or not (name in asked or known.pipeline == pipeline)):
                base = _plain_name(source.folder.name)
                candidates = itertools.chain([base], (f"{base}-{n}" for n in itertools.count(2)))
                other = next(candidate for candidate in candidates if candidate not in found)
                report.add("noted", source.folder, f"a second {stage} of experiment {name}: it becomes experiment {other}")
                name = other
            experiment = found.setdefault(name, Experiment(name, pipeline, {}, source.config))
            if IN_SUMMARY[stage].role == "student":
                experiment.pipeline, experiment.config = pipeline, source.config
            experiment.stages[stage] = source
            source.shared_by.append(name)
    return list(found.values())


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


def _stage(source: Source, pipeline: str, given: Given, went_on: bool) -> tuple[str, str | None]:
    """Our stage name, and on what ground where it is a guess; the process `went_on` when it ran `<id>__2` after it."""
    if said := [given.stages[name] for name in source.names if name in given.stages]:
        return said[0], None
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
    training = config.get("training") or {}
    batch, steps = training.get("batch_size"), training.get("gradient_accumulation_steps")
    found = {name: training.get(key) for name, key in COMPARED.items()} | {"seed": nested(config, "experiment.seed")}
    found["effective batch"] = batch * steps if isinstance(batch, int) and isinstance(steps, int) else None
    return {key: value for key, value in found.items() if value is not None}


def find_attempts(source: Source, report: Report) -> None:
    """Sort the files and the power log of a stage's folder into its attempts, oldest first."""
    by_start: dict[float, list[StageFile]] = {}
    for file in source.files:
        if file.said.span is None:
            report.add("refused", file.path, "partial record: no start and end that a stage can have")
        else:
            by_start.setdefault(round(file.said.span[0], 3), []).append(file)
    for start, files in by_start.items():
        files.sort(key=lambda file: file.rank)
        latest, snapshots = files[-1], [file for file in files if file.snapshot]
        source.attempts.append(Attempt(start, latest.rank[0], latest, snapshots, environment=source.environment))
        for file in files[:-1]:
            _compare(file, latest, report)
        if earlier := [file for file in snapshots if file is not latest]:
            name = f"step {latest.step}" if latest.snapshot and latest.step is not None else latest.path.name
            text = f"{len(earlier)} earlier snapshot(s) of {source.stage_id}: {name} holds their energy"
            report.add("dropped", source.folder, text)
        if latest.path.name == SUMMARY:
            report.add("noted", latest.path, f"stage {source.stage_id} has no whole file of its own: taken from this summary")
    source.attempts.sort(key=lambda a: a.start)
    if source.power_log is None:
        return
    own, others = split(source.power_log, [a.start for a in source.attempts], [a.end for a in source.attempts])
    for attempt, part in zip(source.attempts, own, strict=True):
        attempt.log, attempt.end = part, max(attempt.end, part.end if part is not None else 0.0)
    for part in others:  # attempts of which nothing else was kept
        source.attempts.append(Attempt(part.start, part.end, log=part))
        text = f"power log: {part.end - part.start:,.0f} s from {part.start:.0f} on are an attempt without a record"
        report.add("noted", source.folder, text)
    source.attempts.sort(key=lambda a: a.start)


def _compare(file: StageFile, used: StageFile, report: Report) -> None:
    """Two files of one instant of one run that do not say the same."""
    for key in STATED_TWICE if abs(file.rank[0] - used.rank[0]) < SAME_START_S else ():
        if key in file.said.model_fields_set and (other := getattr(file.said, key)) != (ours := getattr(used.said, key)):
            said, own = ("null" if value is None else f"{value:.15g}" for value in (other, ours))
            report.add("noted", file.path, f"stage {used.stage_id}: {key} = {said}, {used.path} says {own}, which is used")


def unite(sources: Sequence[Source], given: Given, report: Report) -> list[Source]:
    """Sources that hold the same runs, or attempts of one stage, in several folders become one; each run counts once."""
    united: list[Source] = []
    for source in sources:
        for twin in [one for one in united if one.stage_id == source.stage_id]:
            same = any(_same_run(a, b) for a in twin.attempts for b in source.attempts)
            if same or same_stage(twin, source, given, sources):
                united.remove(twin)
                if not same:
                    text = f"runs of {source.stage_id} here and in {twin.folder} are attempts of one stage"
                    report.add("noted", source.folder, text)
                _join(twin, source, report)
                source = twin
        united.append(source)
    return united


def _same_run(one: Attempt, other: Attempt) -> bool:
    """The same start; where only one has a file, and only one a row, also most of the same time."""
    apart = (one.file is not None and other.file is not None) or (one.row is not None and other.row is not None)
    return abs(one.start - other.start) < SAME_START_S or (not apart and one.overlaps(other))


def _join(one: Source, other: Source, report: Report) -> None:
    """Add to a source the attempts and files of another."""
    attempts: list[Attempt] = []
    for attempt in (*one.attempts, *other.attempts):
        twin = next((kept for kept in attempts if _same_run(kept, attempt)), None)
        if twin is None:
            attempts.append(attempt)
        else:
            _absorb(twin, attempt, report)
            text = f"the run of {one.stage_id} from {attempt.start:.0f} on is in {one.folder} as well"
            report.add("dropped", other.folder, text)
    one.attempts = sorted(attempts, key=lambda a: a.start)
    one.others += [other.folder, *other.others]
    one.files += other.files
    one.config = one.config or other.config
    one.summary = one.summary or other.summary


def _absorb(own: Attempt, other: Attempt, report: Report) -> None:
    """Add to an attempt what another folder has of it: of two files the one that says more, of two logs the longer."""
    own.start = min(own.start, other.start)
    if files := [(a.file, a) for a in (own, other) if a.file is not None]:
        own.file, holder = max(files, key=lambda pair: pair[0].rank)
        own.start, own.environment = holder.start, holder.environment or own.environment or other.environment
        for file, _ in files:
            _compare(file, own.file, report)
    own.end = max(own.end, other.end)
    snapshots = {file.rank: file for file in (*other.snapshots, *own.snapshots)}
    own.snapshots = [snapshots[rank] for rank in sorted(snapshots)]
    logs = [log for log in (own.log, other.log) if log is not None]
    own.log = max(logs, key=lambda log: (log.end - log.start, len(log.times)), default=None)
    own.row = own.row or other.row


def note_overlaps(source: Source, report: Report) -> None:
    """Report attempts that ran at the same time."""
    for one, other in itertools.pairwise(source.attempts):
        if other.start < one.end:
            text = f"overlap by {one.end - other.start:.0f} s: energy may be counted twice"
            report.add("noted", source.folder, f"attempts of {source.stage_id} {text}")


def zones(sources: Sequence[Source], rows: Iterable[Row]) -> Mapping[float, int]:
    """Distances from UTC [s] of the local times in these files, each with the number of files that have it.

    Snapshots and summaries name an instant both ways. Where none does, rows of a stage's name and duration do.
    """
    found: Counter[float] = Counter()
    for source in sources:
        pairs = [(f.said.snapshot_time, f.said.end_time) for f in source.files if f.snapshot]
        stages = [Written.model_validate(s) for s in source.summary.get("stages", {}).values() if isinstance(s, dict)]
        pairs.append((source.summary.get("end_time"), max((s.end_time or 0.0 for s in stages), default=0.0)))
        for text, seconds in pairs:
            local = local_time(text) if isinstance(text, str) else None
            found.update(_zone(local, seconds) if local is not None and seconds else [])
    if not found:
        for row in rows:
            near = (a for s in sources for a in s.attempts if row.project == s.stage_id and _as_long(a, row))
            found.update(offset for a in near for offset in _zone(row.local_end, a.end))
    return found


def _zone(local: float, seconds: float) -> list[float]:
    """The time zone that makes the two one instant, if there is one."""
    offset, rest = zone_offset(local, seconds)
    return [offset] if abs(rest) < SAME_INSTANT_S and -12 * 3600 <= offset <= 14 * 3600 else []


def _as_long(attempt: Attempt, row: Row) -> bool:
    return abs(row.duration_s - attempt.seconds) <= max(10.0, SAME_DURATION * row.duration_s)


def match_rows(sources: Sequence[Source], rows: Iterable[Row], offset: float, report: Report) -> list[tuple[Row, Attempt]]:
    """Give each attempt the row of its stage's or experiment's name, and of its duration and end.

    A row's project alone proves nothing: the first system took the last row of a project for that of every later attempt. The
    other rows of a stage's name are further attempts of it. Returned are those that belong to no stage, or to one of several.
    """
    left, nobodys = [], []
    for row in rows:
        end = row.local_end - offset
        ours = [s for s in sources if s.stage_id == row.project] or [s for s in sources if experiment_name(s) == row.project]
        same = (a for s in ours for a in s.attempts if a.row is None and _as_long(a, row) and abs(a.end - end) < SAME_INSTANT_S)
        if (own := next(same, None)) is not None:
            own.row = row
        else:
            left.append((row, Attempt(end - row.duration_s, end, row=row), ours))
    for row, attempt, ours in left:
        twin = next((a for s in ours for a in s.attempts if a.row is None and a.overlaps(attempt)), None)
        if twin is not None and twin.file is not None:
            text = f"row {row.run_id} of {row.project}, {row.duration_s:,.0f} s, is of the time of an attempt that has a record"
            report.add("dropped", row.path, text)
        elif twin is not None:
            twin.row, twin.end = row, max(twin.end, attempt.end)
        elif len(ours) == 1:
            ours[0].attempts = sorted([*ours[0].attempts, attempt], key=lambda a: a.start)
            text = f"row {row.run_id}, {row.duration_s:,.0f} s, is a further attempt of {ours[0].stage_id}"
            report.add("noted", row.path, text)
        else:
            nobodys.append((row, attempt))
    return nobodys
