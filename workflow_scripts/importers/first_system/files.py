"""The files of a run folder of the first system, sorted by what they are; what cannot be read is named and left out.

A run folder holds stages/<stage>/ (or stages/<stage>.json, as its guide had it), experiment_summary.json and codecarbon/. A
stage folder holds the stage's record, cumulative snapshots `<stage>__step_N.json`, power_log.csv, the configuration and the
environment. A single stage folder may be given as well.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator

from workflow_scripts.artefact import read_json
from workflow_scripts.errors import UserError
from workflow_scripts.importers.first_system.logs import LATEST, PowerLog, PowerLogError, Row, read_emissions, read_power_log
from workflow_scripts.importers.first_system.values import Number, Report, nested

SUMMARY = "experiment_summary.json"
Json = Mapping[str, Any]
SHAPES: dict[str, dict[str, Any]] = {  # what is read of a file by its key; a value of another type makes it malformed
    "config": {"config": dict, "experiment": dict, "stage_id": str, "config.pipeline": str, "config.experiment.name": str}
    | {f"config.{section}": dict for section in ("experiment", "training", "synthetic_data", "energy", "output")},
    "environment": {"hostname": str, "gpus": list, "cpu.brand": str, "cpu.logical_cores": int, "git_info.commit_hash": str}
    | {"git_info.is_dirty": bool, **dict.fromkeys(("cpu", "software", "git_info", "slurm_info"), dict)},
    "summary": {"stages": dict, "experiment_name": str},
    "stage": {"stage_id": str, "stage_name": str},
}
REQUIRED = {"config": "config", "summary": "stages"}


class Written(BaseModel):
    """A stage as the first system wrote it [J, kWh, kg, W, s]: what is no finite number there is None here."""

    start_time: Number = None
    end_time: Number = None
    duration_seconds: Number = None
    tokens_processed: Number = None
    gpu_energy_joules: Number = None
    gpu_peak_power_watts: Number = None
    gpu_power_samples: Annotated[int, BeforeValidator(lambda value: len(value) if isinstance(value, list) else 0)] = 0
    cpu_energy_joules: Number = None
    total_energy_joules: Number = None
    joules_per_token: Number = None
    codecarbon_cpu_energy_kwh: Number = None
    codecarbon_gpu_energy_kwh: Number = None
    codecarbon_ram_energy_kwh: Number = None
    codecarbon_energy_kwh: Number = None
    total_codecarbon_energy_kwh: Number = None
    codecarbon_emissions_kg: Number = None
    nvml_poll_interval_ms: Number = None
    snapshot_step: Number = None
    snapshot_time: Any = None

    @property
    def span(self) -> tuple[float, float] | None:
        """Start and end [s, Unix]; a missing one follows from the duration. None where that cannot be."""
        start, end, seconds = self.start_time, self.end_time, self.duration_seconds
        if seconds is not None:
            start = end - seconds if start is None and end is not None else start
            end = start + seconds if end is None and start is not None else end
        return (start, end) if start is not None and end is not None and LATEST > end > start > 0 else None


@dataclass(frozen=True)
class StageFile:
    """One stage record or snapshot; `digest` is its content's without the power samples, `odd` what is no number in it.

    Of two files of one run that of the greater `rank` says more: the later, then a final record, then one that is no summary.
    """

    path: Path
    said: Written
    digest: str
    odd: tuple[str, ...]
    stage_id: str
    step: int | None
    snapshot: bool
    rank: tuple[float, bool, bool, int]


@dataclass
class Attempt:
    """One attempt: start and end [s, Unix]; `file` is the latest that speaks of it, `snapshots` all, in order of their end."""

    start: float
    end: float
    file: StageFile | None = None
    snapshots: list[StageFile] = field(default_factory=list)
    log: PowerLog | None = None
    row: Row | None = None
    environment: Json = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.end - self.start

    @property
    def finished(self) -> bool:
        """Whether the first system ended the stage itself; it also did so when the program left by an exception."""
        return self.file is not None and not self.file.snapshot

    @property
    def said(self) -> Written:
        """The figures in the file; without one, none."""
        return self.file.said if self.file is not None else Written()

    def overlaps(self, other: Attempt) -> bool:
        """Whether the two share more than half of the shorter one's time."""
        shared = min(self.end, other.end) - max(self.start, other.start)
        return shared > 0.5 * min(self.seconds, other.seconds)


@dataclass
class Source:
    """All that is known of one stage, from the folders that hold its attempts; `shared_by` names the experiments that use it.

    `zone` counts, for each distance from UTC [s], the files by which local times have it.
    """

    run: Path
    folder: Path
    stage_id: str
    files: list[StageFile] = field(default_factory=list)
    power_log: PowerLog | None = None
    config: Json = field(default_factory=dict)
    environment: Json = field(default_factory=dict)
    summary: Json = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    shared_by: list[str] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    zone: Mapping[float, int] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names that a user can give it: its id and its folders."""
        return tuple(dict.fromkeys((self.folder.name, self.stage_id, *(path.name for path in self.others))))


def read_run_folder(path: Path, rows: dict[str, Row], report: Report) -> list[Source]:
    """Stages of one run folder; none when nothing of the first system is in it, which is reported.

    CodeCarbon's rows are added to `rows`, a run of CodeCarbon once, by its longest row.
    """
    if not path.is_dir():
        report.add("refused", path, "no such folder")
        return []
    top, stages = path / SUMMARY, path / "stages"
    whole = _read([top] if top.is_file() and stages.is_dir() else [], report)["summary"]
    folders = [stages, *sorted(p for p in stages.iterdir() if p.is_dir())] if stages.is_dir() else [path]
    sources = [source for folder in folders for source in _stage_folder(path, folder, whole, report)]
    for file, summary in whole:
        known = {source.stage_id for source in sources}
        sources += [Source(path, path, name, summary=summary) for name in summary["stages"] if name not in known]
        for source in sources:
            _from_summary(source, file, summary, report)
    sources = [source for source in sources if source.files or source.power_log is not None]
    if not _emissions(path, rows, report) and not sources:
        report.add("refused", path, "no stage record, snapshot, power_log.csv or emissions.csv of the first system in it")
    return sources


def _read(paths: Iterable[Path], report: Report) -> dict[str, list[tuple[Path, Json]]]:
    """The files by what they are; what is malformed or of another system is reported."""
    found: dict[str, list[tuple[Path, Json]]] = {kind: [] for kind in SHAPES}
    for path in paths:
        try:
            content = read_json(path)
            kind = _kind(content)
            _check_shape(kind, content)
        except (UserError, OSError, ValueError, RecursionError) as error:
            report.add("refused", path, str(error).partition(": delete it")[0].removeprefix(f"{path} "))
        else:
            report.add("read", path, kind)
            found[kind].append((path, content))
    return found


def _stage_folder(run: Path, folder: Path, whole: list[tuple[Path, Json]], report: Report) -> list[Source]:
    """The stages of one folder, each with its configuration and environment, and the power log when there is one stage."""
    found = _read(sorted(folder.glob("*.json")), report)
    sources: dict[str, Source] = {}
    for path, content in found["stage"]:
        file = _stage_file(path, content, report)
        sources.setdefault(file.stage_id, Source(run, folder, file.stage_id)).files.append(file)
    for name in (name for _, summary in found["summary"] for name in summary["stages"]):
        sources.setdefault(name, Source(run, folder, name))
    log = _power_log(folder / "power_log.csv", report)
    if not sources and log is not None:
        stage_id = str(_one_of(found["config"], folder.name).get("stage_id") or folder.name)
        sources[stage_id] = Source(run, folder, stage_id)
    elif not sources and found["config"] and folder != run:
        report.add("missing", folder, "the stage began, and left no record, snapshot or power log: its energy is not known")
    for source in sources.values():
        source.config = _one_of(found["config"], source.stage_id).get("config", {})
        source.environment = _one_of(found["environment"], source.stage_id)
        source.summary = (found["summary"] or whole or [(folder, {})])[-1][1]
        for path, summary in found["summary"]:
            _from_summary(source, path, summary, report)
    if len(sources) == 1:
        next(iter(sources.values())).power_log = log
    elif log is not None:
        report.add("refused", folder / "power_log.csv", f"{len(sources)} stages lie beside it: whose power it is is not known")
    return list(sources.values())


def _stage_file(path: Path, content: Json, report: Report) -> StageFile:
    bare = {key: value for key, value in content.items() if key != "gpu_power_samples"}
    digest = hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()
    said = Written.model_validate(content)
    numbers = [name for name, info in Written.model_fields.items() if info.annotation == float | None]
    wrong = [key for key in numbers if content.get(key) is not None and getattr(said, key) is None]
    odd = tuple(f"{key} = {content[key]!r:.40} is no finite number: it is not known" for key in wrong)
    for text in odd:
        report.add("refused", path, text)
    named, step = re.search(r"__step_(\d+)$", path.stem), said.snapshot_step
    step = int(step) if step is not None else int(named[1]) if named else None
    snapshot = bool(content.get("snapshot")) or "__partial" in path.stem or step is not None
    rank = (said.span[1] if said.span is not None else 0.0, not snapshot, path.name != SUMMARY, step or 0)
    stage_id = str(content.get("stage_id") or content.get("stage_name") or path.stem)
    return StageFile(path, said, digest, odd, stage_id, step, snapshot, rank)


def _from_summary(source: Source, place: Path, summary: Json, report: Report) -> None:
    """What a summary says of a stage is one more file of it."""
    content = summary["stages"].get(source.stage_id)
    if isinstance(content, dict):
        source.files.append(_stage_file(place, {"stage_id": source.stage_id, **content}, report))
    elif content is not None:
        report.add("refused", place, f"stage {source.stage_id}: a JSON {type(content).__name__}, expected an object")


def _power_log(path: Path, report: Report) -> PowerLog | None:
    if not path.is_file():
        return None
    try:
        log = read_power_log(path)
    except (PowerLogError, OSError, csv.Error) as error:
        report.add("refused", path, str(error))
        return None
    report.add("read", path, "power log")
    if log.bad_rows:
        report.add("refused", path, f"{log.bad_rows} row(s) that are no samples; the other {len(log.times):,} are used")
    if log.repeated_rows:
        report.add("dropped", path, f"{log.repeated_rows} row(s) with the time stamp of another row")
    return log


def _emissions(run: Path, rows: dict[str, Row], report: Report) -> int:
    """CodeCarbon's rows of all rotated files; returns how many there are."""
    paths = sorted([*run.glob("codecarbon/emissions*.csv*"), *run.glob("emissions*.csv*")])
    found = [row for path in paths for row in read_emissions(path, report)]
    for row in found:
        if other := rows.get(row.run_id):
            row, shorter = sorted((row, other), key=lambda r: -r.duration_s)
            report.add("dropped", shorter.path, f"row of CodeCarbon run {row.run_id}, again and no shorter in {row.path}")
        rows[row.run_id] = row
    return len(found)


def _kind(content: Any) -> str:
    """config, environment, summary or stage. Raises UserError that says why it is none of them."""
    if not isinstance(content, dict):
        raise UserError(f"a JSON {type(content).__name__}, expected an object")
    if str(content.get("schema", "")).startswith(("energy-stage/", "experiment-summary/")):
        raise UserError(f"{content['schema']} is a result of this program, nothing to import: compare its summary as it is")
    if "stages" in content:
        return "summary"
    if ("stage_id" in content or "stage_name" in content) and ("start_time" in content or "gpu_energy_joules" in content):
        return "stage"
    if "config" in content or ("experiment" in content and "start_time" not in content):
        return "config"
    if "software" in content or "gpus" in content:
        return "environment"
    raise UserError(f"no stage of the first system (keys {', '.join(list(content)[:4]) or 'none'})")


def _check_shape(kind: str, content: Json) -> None:
    """Raises UserError naming the first value that is not of its type."""
    for key, expected in SHAPES[kind].items():
        value = nested(content, key)
        if value is not None and not isinstance(value, expected):
            wanted = "an object" if expected is dict else f"a {expected.__name__}"
            raise UserError(f"{kind}: {key} = {value!r:.40}, expected {wanted}")
    if kind in REQUIRED and content.get(REQUIRED[kind]) is None:
        raise UserError(f"{kind}: it has no {REQUIRED[kind]}")
    for gpu in content.get("gpus") or () if kind == "environment" else ():
        if not isinstance(gpu, dict) or not isinstance(gpu.get("name"), str | None):
            raise UserError(f"environment: gpus has {gpu!r:.40}, expected an object with a name")


def _one_of(files: list[tuple[Path, Json]], stage_id: str) -> Json:
    """The file of a stage, by its own word or its name, or the only one there is."""
    own = [content for path, content in files if stage_id == content.get("stage_id") or path.stem.endswith(f"__{stage_id}")]
    return (own or [content for _, content in files if len(files) == 1] or [{}])[-1]
