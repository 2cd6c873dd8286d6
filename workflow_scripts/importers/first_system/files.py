"""The files of a run folder of the first system, sorted by what they are; what cannot be read is named and left out.

A run folder holds stages/<stage>/ (or stages/<stage>.json, as its guide had it), experiment_summary.json and codecarbon/. A
stage folder holds the stage's record, cumulative snapshots `<stage>__step_N.json`, power_log.csv, the configuration and the
environment. A single stage folder may be given as well.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workflow_scripts.artefact import ArtefactError, read_json
from workflow_scripts.importers.first_system.emissions import Row, read_emissions
from workflow_scripts.importers.first_system.power_log import PowerLog, PowerLogError, read_power_log
from workflow_scripts.importers.first_system.report import Report

SUMMARY = "experiment_summary.json"
SAMPLES = "gpu_power_samples"
STEP = re.compile(r"__step_(\d+)$")


@dataclass(frozen=True)
class StageFile:
    """One stage record or snapshot; `digest` is that of its content without the power samples."""

    path: Path
    content: dict[str, Any]
    digest: str

    @property
    def stage_id(self) -> str:
        """Name of the stage in the first system."""
        return str(self.content.get("stage_id") or self.content.get("stage_name") or self.path.stem)

    @property
    def snapshot(self) -> bool:
        """Whether the stage was still running when this was written."""
        return bool(self.content.get("snapshot")) or "__partial" in self.path.stem or self.step is not None

    @property
    def step(self) -> int | None:
        """Step of a snapshot, by its own word or by its name; compared as a number, 10200 is after 9800."""
        step = self.content.get("snapshot_step")
        if isinstance(step, int) and not isinstance(step, bool):
            return step
        named = STEP.search(self.path.stem)
        return int(named[1]) if named else None


@dataclass
class Source:
    """All that is known of one stage of one run folder."""

    run: Path
    folder: Path
    stage_id: str
    files: list[StageFile] = field(default_factory=list)
    power_log: PowerLog | None = None
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)


@dataclass
class RunFolder:
    """One run folder: its stages and CodeCarbon's rows."""

    path: Path
    sources: list[Source] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)


class Reader:
    """Reads run folders; remembers contents, so that a copy of a file counts once over all of them."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._seen: dict[str, Path] = {}
        self._rows: dict[str, Row] = {}

    def run_folder(self, path: Path) -> RunFolder:
        """Read one run folder; empty when it holds nothing of the first system, which the report says."""
        run = RunFolder(path)
        if not path.is_dir():
            self._report.add("refused", path, "no such folder")
            return run
        top = path / SUMMARY
        if top.is_file() and (content := self._json(top)) is not None:
            kind = _kind(top, content)
            run.summary = content if kind == "summary" else {}
            self._report.add("read" if run.summary else "refused", top, kind)
        stages = path / "stages"
        folders = [stages, *sorted(p for p in stages.iterdir() if p.is_dir())] if stages.is_dir() else [path]
        for folder in folders:
            run.sources += self._stage_folder(run, folder)
        self._fill_from_summary(run)
        run.rows = self._emissions(path)
        if not run.sources and not run.rows:
            self._report.add(
                "refused", path, "no stage record, snapshot, power_log.csv or emissions.csv of the first system in it"
            )
        return run

    def _stage_folder(self, run: RunFolder, folder: Path) -> list[Source]:
        """The stages of one folder, each with its configuration and environment, and the power log when there is one stage."""
        found: dict[str, list[tuple[Path, dict[str, Any]]]] = {"config": [], "environment": [], "summary": []}
        sources: dict[str, Source] = {}
        for path in sorted(folder.glob("*.json")):
            if path == run.path / SUMMARY or (content := self._json(path)) is None:
                continue
            kind = _kind(path, content)
            if kind in found:
                self._report.add("read", path, kind)
                found[kind].append((path, content))
            elif kind != "stage":
                self._report.add("refused", path, kind)
            elif (file := self._stage_file(path, content)) is not None:
                sources.setdefault(file.stage_id, Source(run.path, folder, file.stage_id)).files.append(file)
        summary = found["summary"][-1][1] if found["summary"] else run.summary
        log = self._power_log(folder / "power_log.csv")
        if not sources and (log is not None or found["summary"]):
            stage_id = _only_stage(summary) or _one_of(found["config"], folder.name).get("stage_id") or folder.name
            sources[stage_id] = Source(run.path, folder, stage_id)
        elif not sources and found["config"] and folder != run.path:
            self._report.add(
                "missing", folder, "the stage began, and left no record, snapshot or power log: its energy is not known"
            )
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

    def _json(self, path: Path) -> dict[str, Any] | None:
        try:
            content = read_json(path)
        except (ArtefactError, OSError, UnicodeDecodeError) as error:
            self._report.add("refused", path, str(error).partition(": delete it")[0].removeprefix(f"{path} "))
            return None
        if not isinstance(content, dict):
            self._report.add("refused", path, f"a JSON {type(content).__name__}, expected an object")
            return None
        return content

    def _stage_file(self, path: Path, content: dict[str, Any]) -> StageFile | None:
        digest = digest_of(content)
        if digest in self._seen:
            self._report.add("dropped", path, f"same content as {self._seen[digest]}")
            return None
        self._seen[digest] = path
        self._report.add("read", path, "stage")
        return StageFile(path, content, digest)

    def _fill_from_summary(self, run: RunFolder) -> None:
        """Stages that a summary has and no whole file: an attempt that is known by its start is not taken again."""
        known = {(f.stage_id, f.content.get("start_time")): f for s in run.sources for f in s.files if not f.snapshot}
        summaries = {id(s.summary): (s.folder, s.summary) for s in run.sources if s.summary}
        if run.summary:
            summaries.setdefault(id(run.summary), (run.path, run.summary))
        for folder, summary in summaries.values():
            place = folder / SUMMARY
            stages = summary.get("stages")
            for stage_id, content in (stages if isinstance(stages, dict) else {}).items():
                if not isinstance(content, dict):
                    self._report.add("refused", place, f"stage {stage_id}: a JSON {type(content).__name__}, expected an object")
                    continue
                own = known.get((stage_id, content.get("start_time")))
                if own is not None:
                    self._compare(place, content, own)
                    continue
                source = next((s for s in run.sources if s.stage_id == stage_id), None)
                if source is None:
                    source = Source(run.path, folder, stage_id, summary=summary)
                    run.sources.append(source)
                if (file := self._stage_file(place, {"stage_id": stage_id, **content})) is not None:
                    self._report.add("noted", place, f"stage {stage_id} has no whole file of its own: taken from this summary")
                    source.files.append(file)
                    known[stage_id, content.get("start_time")] = file
        run.sources = [s for s in run.sources if s.files or s.power_log is not None]

    def _compare(self, place: Path, content: dict[str, Any], own: StageFile) -> None:
        """A summary that does not say what the stage's own file says."""
        for key in ("total_energy_joules", "tokens_processed"):
            if key in content and content[key] != own.content.get(key):
                text = f"stage {own.stage_id}: {key} = {content[key]}, its own file {own.content.get(key)}, which is used"
                self._report.add("noted", place, text)

    def _power_log(self, path: Path) -> PowerLog | None:
        if not path.is_file():
            return None
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest in self._seen:
            self._report.add("dropped", path, f"same content as {self._seen[digest]}")
            return None
        try:
            log = read_power_log(path)
        except (PowerLogError, OSError) as error:
            self._report.add("refused", path, str(error))
            return None
        self._seen[digest] = path
        self._report.add("read", path, "power log")
        if log.bad_rows:
            self._report.add(
                "refused", path, f"{log.bad_rows} row(s) that are no samples; the other {len(log.times):,} are used"
            )
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


def digest_of(content: dict[str, Any]) -> str:
    """Mark of a stage's content, whatever its order and whether the power samples were kept."""
    bare = {key: value for key, value in content.items() if key != SAMPLES}
    return hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()


def _kind(path: Path, content: dict[str, Any]) -> str:
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


def _only_stage(summary: dict[str, Any]) -> str | None:
    """The one stage that a summary has."""
    stages = list(summary.get("stages") or {})
    return stages[0] if len(stages) == 1 else None


def _one_of(files: list[tuple[Path, dict[str, Any]]], stage_id: str) -> dict[str, Any]:
    """The file of a stage, by its own word or its name, or the only one there is."""
    own = [content for path, content in files if stage_id == content.get("stage_id") or path.stem.endswith(f"__{stage_id}")]
    return (own or [content for _, content in files if len(files) == 1] or [{}])[-1]
