"""The files of a run folder of the first system, sorted by what they are; what cannot be read is named and left out.

A run folder holds stages/<stage>/ (or stages/<stage>.json, as its guide had it), experiment_summary.json and codecarbon/. A
stage folder holds the stage's record, cumulative snapshots `<stage>__step_N.json`, power_log.csv, the configuration and the
environment. A single stage folder may be given as well.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator

from workflow_scripts.artefact import ArtefactError, read_json
from workflow_scripts.importers.first_system.logs import PowerLog, PowerLogError, Row, read_emissions, read_power_log
from workflow_scripts.importers.first_system.values import Number, Report

SUMMARY = "experiment_summary.json"
SAMPLES = "gpu_power_samples"
STEP = re.compile(r"__step_(\d+)$")
Json = Mapping[str, Any]


class Written(BaseModel):
    """A stage as the first system wrote it [J, kWh, kg, W, s]: what is no finite number there is None here."""

    stage_id: Any = None
    stage_name: Any = None
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
    snapshot: Any = None
    snapshot_step: Number = None
    snapshot_time: Any = None

    @property
    def span(self) -> tuple[float, float] | None:
        """Start and end [s, Unix]; a missing one follows from the duration. None where that cannot be."""
        start, end, seconds = self.start_time, self.end_time, self.duration_seconds
        if seconds is not None:
            start = end - seconds if start is None and end is not None else start
            end = start + seconds if end is None and start is not None else end
        return (start, end) if start is not None and end is not None and end > start > 0 else None


@dataclass(frozen=True)
class StageFile:
    """One stage record or snapshot; `digest` is that of its content without the power samples."""

    path: Path
    said: Written
    digest: str

    @property
    def stage_id(self) -> str:
        """Name of the stage in the first system."""
        return str(self.said.stage_id or self.said.stage_name or self.path.stem)

    @property
    def snapshot(self) -> bool:
        """Whether the stage was still running when this was written."""
        return bool(self.said.snapshot) or "__partial" in self.path.stem or self.step is not None

    @property
    def step(self) -> int | None:
        """Step of a snapshot, by its own word or by its name; compared as a number, 10200 is after 9800."""
        named = STEP.search(self.path.stem)
        step = self.said.snapshot_step
        return int(step) if step is not None else int(named[1]) if named else None


@dataclass
class Attempt:
    """One attempt: start and end [s, Unix]; `file` is the latest that speaks of it, `snapshots` all, in order of their step."""

    start: float
    end: float
    file: StageFile | None = None
    snapshots: list[StageFile] = field(default_factory=list)
    log: PowerLog | None = None
    row: Row | None = None

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

    @property
    def file_end(self) -> float | None:
        """The instant of the figures in the file [s, Unix]."""
        return span[1] if (span := self.said.span) is not None else None


@dataclass
class Source:
    """All that is known of one stage of one run folder; `shared_by` names the experiments that use it."""

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


class Reader:
    """Reads run folders; remembers contents, so that a copy of a file counts once over all of them."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._seen: dict[str, Path] = {}
        self._rows: dict[str, Row] = {}

    def run_folder(self, path: Path) -> tuple[list[Source], list[Row]]:
        """Stages and CodeCarbon's rows of one run folder; none when nothing of the first system is in it, which is reported."""
        summary: Json = {}
        if not path.is_dir():
            self._report.add("refused", path, "no such folder")
            return [], []
        top = path / SUMMARY
        if top.is_file() and (content := self._json(top)) is not None:
            kind = _kind(content)
            summary = content if kind == "summary" else {}
            self._report.add("read" if summary else "refused", top, kind)
        stages = path / "stages"
        folders = [stages, *sorted(p for p in stages.iterdir() if p.is_dir())] if stages.is_dir() else [path]
        sources = [source for folder in folders for source in self._stage_folder(path, folder, summary)]
        sources = self._with_summaries(path, sources, summary)
        rows = self._emissions(path)
        if not sources and not rows:
            nothing = "no stage record, snapshot, power_log.csv or emissions.csv of the first system in it"
            self._report.add("refused", path, nothing)
        return sources, rows

    def _stage_folder(self, run: Path, folder: Path, whole: Json) -> list[Source]:
        """The stages of one folder, each with its configuration and environment, and the power log when there is one stage."""
        found: dict[str, list[tuple[Path, Json]]] = {"config": [], "environment": [], "summary": []}
        sources: dict[str, Source] = {}
        for path in sorted(folder.glob("*.json")):
            if path == run / SUMMARY or (content := self._json(path)) is None:
                continue
            kind = _kind(content)
            if kind in found:
                self._report.add("read", path, kind)
                found[kind].append((path, content))
            elif kind != "stage":
                self._report.add("refused", path, kind)
            elif (file := self._stage_file(path, content)) is not None:
                sources.setdefault(file.stage_id, Source(run, folder, file.stage_id)).files.append(file)
        summary = found["summary"][-1][1] if found["summary"] else whole
        log = self._power_log(folder / "power_log.csv")
        if not sources and (log is not None or found["summary"]):
            only = list(summary.get("stages", {})) if len(summary.get("stages", {})) == 1 else []
            stage_id = only[0] if only else _one_of(found["config"], folder.name).get("stage_id") or folder.name
            sources[stage_id] = Source(run, folder, stage_id)
        elif not sources and found["config"] and folder != run:
            gone = "the stage began, and left no record, snapshot or power log: its energy is not known"
            self._report.add("missing", folder, gone)
        for source in sources.values():
            source.config = _one_of(found["config"], source.stage_id).get("config", {})
            source.environment = _one_of(found["environment"], source.stage_id)
            source.summary = summary
        if log is not None and len(sources) == 1:
            next(iter(sources.values())).power_log = log
        elif log is not None:
            text = f"{len(sources)} stages lie beside it: whose power it is is not known"
            self._report.add("refused", folder / "power_log.csv", text)
        return list(sources.values())

    def _json(self, path: Path) -> Json | None:
        try:
            content = read_json(path)
        except (ArtefactError, OSError, UnicodeDecodeError) as error:
            self._report.add("refused", path, str(error).partition(": delete it")[0].removeprefix(f"{path} "))
            return None
        if not isinstance(content, dict):
            self._report.add("refused", path, f"a JSON {type(content).__name__}, expected an object")
            return None
        return content

    def _known(self, path: Path, digest: str) -> bool:
        """Whether content of this digest has been read before."""
        if digest in self._seen:
            self._report.add("dropped", path, f"same content as {self._seen[digest]}")
        return digest in self._seen

    def _stage_file(self, path: Path, content: Json) -> StageFile | None:
        bare = {key: value for key, value in content.items() if key != SAMPLES}
        digest = hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()
        if self._known(path, digest):
            return None
        self._seen[digest] = path
        self._report.add("read", path, "stage")
        return StageFile(path, Written.model_validate(content), digest)

    def _with_summaries(self, run: Path, sources: list[Source], whole: Json) -> list[Source]:
        """Stages that a summary has and no whole file: an attempt that is known by its start is not taken again."""
        known = {(f.stage_id, f.said.start_time): f for s in sources for f in s.files if not f.snapshot}
        summaries = {id(s.summary): (s.folder, s.summary) for s in sources if s.summary}
        if whole:
            summaries.setdefault(id(whole), (run, whole))
        for folder, summary in summaries.values():
            place = folder / SUMMARY
            for stage_id, content in summary["stages"].items():
                if not isinstance(content, dict):
                    text = f"stage {stage_id}: a JSON {type(content).__name__}, expected an object"
                    self._report.add("refused", place, text)
                    continue
                start = Written.model_validate(content).start_time
                if own := known.get((stage_id, start)):
                    self._compare(place, Written.model_validate(content), own)
                    continue
                source = next((s for s in sources if s.stage_id == stage_id), None)
                if source is None:
                    source = Source(run, folder, stage_id, summary=summary)
                    sources.append(source)
                if (file := self._stage_file(place, {"stage_id": stage_id, **content})) is not None:
                    self._report.add("noted", place, f"stage {stage_id} has no whole file of its own: taken from this summary")
                    source.files.append(file)
                    known[stage_id, start] = file
        return [s for s in sources if s.files or s.power_log is not None]

    def _compare(self, place: Path, said: Written, own: StageFile) -> None:
        """A summary that does not say what the stage's own file says."""
        for key in {"total_energy_joules", "tokens_processed"} & said.model_fields_set:
            if (other := getattr(said, key)) != (ours := getattr(own.said, key)):
                text = f"stage {own.stage_id}: {key} = {_plain(other)}, its own file {_plain(ours)}, which is used"
                self._report.add("noted", place, text)

    def _power_log(self, path: Path) -> PowerLog | None:
        if not path.is_file() or self._known(path, digest := hashlib.sha256(path.read_bytes()).hexdigest()):
            return None
        try:
            log = read_power_log(path)
        except (PowerLogError, OSError) as error:
            self._report.add("refused", path, str(error))
            return None
        self._seen[digest] = path
        self._report.add("read", path, "power log")
        if log.bad_rows:
            text = f"{log.bad_rows} row(s) that are no samples; the other {len(log.times):,} are used"
            self._report.add("refused", path, text)
        if log.repeated_rows:
            self._report.add("dropped", path, f"{log.repeated_rows} row(s) with the time stamp of another row")
        return log

    def _emissions(self, run: Path) -> list[Row]:
        """CodeCarbon's rows of all rotated files, a run of CodeCarbon once (its longest row)."""
        longest: dict[str, Row] = {}
        for path in sorted({*run.glob("codecarbon/emissions*.csv*"), *run.glob("emissions*.csv*")}):
            for row in read_emissions(path, self._report):
                other = longest.get(row.run_id) or self._rows.get(row.run_id)
                if other is not None:
                    longer, shorter = sorted((row, other), key=lambda r: -r.duration_s)
                    text = f"row of CodeCarbon run {row.run_id}, again and no shorter in {longer.path.name}"
                    self._report.add("dropped", shorter.path, text)
                if other is None or (row.run_id in longest and row.duration_s > other.duration_s):
                    longest[row.run_id] = row
        self._rows |= longest
        return sorted(longest.values(), key=lambda row: row.local_end)


def _plain(value: float | None) -> str:
    return "null" if value is None else f"{value:.15g}"


def _kind(content: Json) -> str:
    """config, environment, summary, stage, or why it is none of them."""
    if str(content.get("schema", "")).startswith(("energy-stage/", "experiment-summary/")):
        return f"{content['schema']} is a result of this program, nothing to import: compare its summary as it is"
    if isinstance(content.get("stages"), dict):
        return "summary"
    if isinstance(content.get("config"), dict):
        return "config"
    if "gpus" in content and "software" in content:
        return "environment"
    if ("stage_id" in content or "stage_name" in content) and ("start_time" in content or "gpu_energy_joules" in content):
        return "stage"
    return f"no stage of the first system (keys {', '.join(list(content)[:4]) or 'none'})"


def _one_of(files: list[tuple[Path, Json]], stage_id: str) -> Json:
    """The file of a stage, by its own word or its name, or the only one there is."""
    own = [content for path, content in files if stage_id == content.get("stage_id") or path.stem.endswith(f"__{stage_id}")]
    return (own or [content for _, content in files if len(files) == 1] or [{}])[-1]
