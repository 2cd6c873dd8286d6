"""Attempts of a stage: told apart by their start time, known by their latest file, their stretch of the power log, or a row."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from workflow_scripts.importers.first_system.emissions import Row
from workflow_scripts.importers.first_system.files import Source, StageFile
from workflow_scripts.importers.first_system.power_log import PowerLog, split
from workflow_scripts.importers.first_system.report import Report
from workflow_scripts.importers.first_system.values import local_time, number, zone_offset

SAME_INSTANT_S = 120.0  # CodeCarbon and the summary are written some seconds after a stage's end
SAME_DURATION = 0.01


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
    def finished(self) -> bool:
        """Whether the first system ended the stage itself; it also did so when the program left by an exception."""
        return self.file is not None and not self.file.snapshot

    @property
    def file_end(self) -> float | None:
        """The instant of the figures in the file [s, Unix]."""
        return span(self.file)[1] if self.file is not None and span(self.file) else None  # type: ignore[index]


def span(file: StageFile) -> tuple[float, float] | None:
    """Start and end of a file's stage [s, Unix]; a missing one follows from the duration. None where that cannot be."""
    start, end, duration = (number(file.content, key) for key in ("start_time", "end_time", "duration_seconds"))
    if start is None and end is not None and duration is not None:
        start = end - duration
    if end is None and start is not None and duration is not None:
        end = start + duration
    return (start, end) if start is not None and end is not None and end > start > 0 else None


def attempts_of(source: Source, report: Report) -> list[Attempt]:
    """Attempts of a stage, oldest first."""
    by_start: dict[float, list[StageFile]] = {}
    for file in source.files:
        times = span(file)
        if times is None:
            report.add("refused", file.path, "partial record: no start and end that a stage can have")
        else:
            by_start.setdefault(round(times[0], 3), []).append(file)
    attempts = []
    for files in by_start.values():
        ordered = sorted(files, key=lambda f: (not f.snapshot, f.step if f.step is not None else -1, span(f)))
        start, end = span(ordered[-1])  # type: ignore[misc]
        attempts.append(Attempt(start, end, ordered[-1], [f for f in ordered if f.snapshot]))
        if len(ordered) > 1:
            report.add(
                "dropped",
                source.folder,
                f"{len(ordered) - 1} earlier snapshot(s) of {source.stage_id}: {_latest(ordered[-1])} holds their energy",
            )
    attempts.sort(key=lambda a: a.start)
    if source.power_log is not None:
        attempts = _with_log(source, source.power_log, attempts, report)
    for one, other in itertools.pairwise(attempts):
        if other.start < one.end:
            report.add(
                "noted",
                source.folder,
                f"attempts of {source.stage_id} overlap by {one.end - other.start:.0f} s: energy may be counted twice",
            )
    return attempts


def _latest(file: StageFile) -> str:
    return f"step {file.step}" if file.snapshot and file.step is not None else file.path.name


def _with_log(source: Source, log: PowerLog, attempts: list[Attempt], report: Report) -> list[Attempt]:
    """Attempts with their parts of the log; a part without a known attempt is one of which nothing else was kept."""
    own, others = split(log, [a.start for a in attempts], [a.end for a in attempts])
    for attempt, part in zip(attempts, own, strict=True):
        attempt.log = part
        if part is not None:
            attempt.end = max(attempt.end, part.end)
    for part in others:
        report.add(
            "noted",
            source.folder,
            f"power log: {part.end - part.start:,.0f} s from {part.start:.0f} on are an attempt without a record",
        )
    return sorted([*attempts, *(Attempt(p.start, p.end, log=p) for p in others)], key=lambda a: a.start)


def utc_offset(sources: Sequence[Source]) -> float | None:
    """Distance from UTC [s] of the local times in these files, where some name an instant both ways and all agree."""
    found = set()
    for source in sources:
        pairs = [(f.content.get("snapshot_time"), f.content.get("end_time")) for f in source.files if f.snapshot]
        stages = source.summary.get("stages")
        ends = [
            e
            for r in (stages.values() if isinstance(stages, dict) else ())
            if isinstance(r, dict) and (e := number(r, "end_time"))
        ]
        pairs += [(source.summary.get("end_time"), max(ends))] if ends else []
        for text, seconds in pairs:
            local = local_time(text) if isinstance(text, str) else None
            if local is not None and isinstance(seconds, int | float):
                offset, rest = zone_offset(local, seconds)
                found |= {offset} if abs(rest) < SAME_INSTANT_S else set()
    return found.pop() if len(found) == 1 else None


def match_rows(attempts: Sequence[Attempt], names: Sequence[str], rows: list[Row]) -> list[Row]:
    """Give each attempt the row of its own name, duration and end; returns the rows that are nobody's.

    A row's project alone proves nothing: the first system took the last row of a project for that of every later attempt.
    """
    left = []
    for row in rows:
        own = next((a for a in attempts if row.project in names and a.row is None and _same(a, row)), None)
        if own is None:
            left.append(row)
        else:
            own.row = row
    return left


def _same(attempt: Attempt, row: Row) -> bool:
    close = abs(row.duration_s - (attempt.end - attempt.start)) <= max(10.0, SAME_DURATION * row.duration_s)
    return close and abs(zone_offset(row.local_end, attempt.end)[1]) < SAME_INSTANT_S
