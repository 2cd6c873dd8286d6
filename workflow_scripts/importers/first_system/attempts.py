"""Attempts of a stage: told apart by their start time, known by their latest file, their stretch of the power log, or a row."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from workflow_scripts.importers.first_system.files import Attempt, Source, StageFile, Written
from workflow_scripts.importers.first_system.logs import PowerLog, Row, split
from workflow_scripts.importers.first_system.values import Report, local_time, nested, zone_offset

SAME_INSTANT_S = 120.0  # CodeCarbon and the summary are written some seconds after a stage's end
SAME_DURATION = 0.01


def find_attempts(source: Source, report: Report) -> None:
    """Sort a stage's files and power log into its attempts, oldest first."""
    by_start: dict[float, list[tuple[tuple[float, float], StageFile]]] = {}
    for file in source.files:
        if (span := file.said.span) is None:
            report.add("refused", file.path, "partial record: no start and end that a stage can have")
        else:
            by_start.setdefault(round(span[0], 3), []).append((span, file))
    attempts = []
    for files in by_start.values():
        files.sort(key=lambda f: (not f[1].snapshot, f[1].step if f[1].step is not None else -1, f[0]))
        (start, end), latest = files[-1]
        attempts.append(Attempt(start, end, latest, [f for _, f in files if f.snapshot]))
        if len(files) > 1:
            name = f"step {latest.step}" if latest.snapshot and latest.step is not None else latest.path.name
            text = f"{len(files) - 1} earlier snapshot(s) of {source.stage_id}: {name} holds their energy"
            report.add("dropped", source.folder, text)
    attempts.sort(key=lambda a: a.start)
    if source.power_log is not None:
        attempts = _with_log(source, source.power_log, attempts, report)
    for one, other in itertools.pairwise(attempts):
        if other.start < one.end:
            text = f"overlap by {one.end - other.start:.0f} s: energy may be counted twice"
            report.add("noted", source.folder, f"attempts of {source.stage_id} {text}")
    source.attempts = attempts


def _with_log(source: Source, log: PowerLog, attempts: list[Attempt], report: Report) -> list[Attempt]:
    """Attempts with their parts of the log; a part without a known attempt is one of which nothing else was kept."""
    own, others = split(log, [a.start for a in attempts], [a.end for a in attempts])
    for attempt, part in zip(attempts, own, strict=True):
        attempt.log = part
        if part is not None:
            attempt.end = max(attempt.end, part.end)
    for part in others:
        text = f"power log: {part.end - part.start:,.0f} s from {part.start:.0f} on are an attempt without a record"
        report.add("noted", source.folder, text)
    return sorted([*attempts, *(Attempt(p.start, p.end, log=p) for p in others)], key=lambda a: a.start)


def utc_offset(sources: Sequence[Source]) -> float | None:
    """Distance from UTC [s] of the local times in these files, where some name an instant both ways and all agree."""
    found = set()
    for source in sources:
        pairs = [(f.said.snapshot_time, f.said.end_time) for f in source.files if f.snapshot]
        stages = [Written.model_validate(s) for s in source.summary.get("stages", {}).values() if isinstance(s, dict)]
        pairs.append((source.summary.get("end_time"), max((s.end_time or 0.0 for s in stages), default=0.0)))
        for text, seconds in pairs:
            local = local_time(text) if isinstance(text, str) else None
            if local is not None and seconds:
                offset, rest = zone_offset(local, seconds)
                found |= {offset} if abs(rest) < SAME_INSTANT_S else set()
    return found.pop() if len(found) == 1 else None


def match_rows(source: Source, rows: list[Row]) -> list[Row]:
    """Give each attempt the row of its stage's or experiment's name, and of its duration and end; returns the rows left over.

    A row's project alone proves nothing: the first system took the last row of a project for that of every later attempt.
    """
    names = (source.stage_id, nested(source.summary, "experiment_name"))
    left = []
    for row in rows:
        own = next((a for a in source.attempts if row.project in names and a.row is None and _same(a, row)), None)
        if own is None:
            left.append(row)
        else:
            own.row = row
    return left


def _same(attempt: Attempt, row: Row) -> bool:
    close = abs(row.duration_s - attempt.seconds) <= max(10.0, SAME_DURATION * row.duration_s)
    return close and abs(zone_offset(row.local_end, attempt.end)[1]) < SAME_INSTANT_S
