"""Attempts of a stage: a run is its stage id and start, over all folders; known by its latest file, its stretch of a power
log, or a row of CodeCarbon.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from workflow_scripts.importers.first_system.files import SUMMARY, Attempt, Source, StageFile, Written
from workflow_scripts.importers.first_system.logs import PowerLog, Row, split
from workflow_scripts.importers.first_system.naming import experiment_name
from workflow_scripts.importers.first_system.values import Report, local_time, zone_offset

SAME_INSTANT_S = 120.0  # CodeCarbon and the summary are written some seconds after a stage's end
SAME_DURATION = 0.01
SAME_START_S = 0.05
COMPARED = ("total_energy_joules", "tokens_processed")


def find_attempts(source: Source, report: Report) -> None:
    """Sort the files and the power log of a stage's folder into its attempts, oldest first."""
    by_start: dict[float, list[StageFile]] = {}
    for file in source.files:
        if file.said.span is None:
            report.add("refused", file.path, "partial record: no start and end that a stage can have")
        else:
            by_start.setdefault(round(file.said.span[0], 3), []).append(file)
    attempts = []
    for start, files in by_start.items():
        files.sort(key=lambda file: file.rank)
        latest, snapshots = files[-1], [file for file in files if file.snapshot]
        attempt = Attempt(start, latest.rank[0], latest, snapshots, environment=source.environment)
        attempts.append(attempt)
        for file in files[:-1]:
            _compare(file, latest, report)
        if earlier := [file for file in snapshots if file is not latest]:
            name = f"step {latest.step}" if latest.snapshot and latest.step is not None else latest.path.name
            text = f"{len(earlier)} earlier snapshot(s) of {source.stage_id}: {name} holds their energy"
            report.add("dropped", source.folder, text)
        if latest.path.name == SUMMARY:
            text = f"stage {source.stage_id} has no whole file of its own: taken from this summary"
            report.add("noted", latest.path, text)
    attempts.sort(key=lambda a: a.start)
    source.attempts = attempts if source.power_log is None else _with_log(source, source.power_log, attempts, report)


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


def _compare(file: StageFile, used: StageFile, report: Report) -> None:
    """Two files of one instant of one run that do not say the same."""
    for key in COMPARED if abs(file.rank[0] - used.rank[0]) < SAME_START_S else ():
        if key in file.said.model_fields_set and (other := getattr(file.said, key)) != (ours := getattr(used.said, key)):
            said, own = ("null" if value is None else f"{value:.15g}" for value in (other, ours))
            text = f"stage {used.stage_id}: {key} = {said}, {used.path} says {own}, which is used"
            report.add("noted", file.path, text)


def unite(sources: Iterable[Source], report: Report) -> list[Source]:
    """Sources that hold the same runs (stage id and start) in several folders become one; each run counts once."""
    united: list[Source] = []
    for source in sources:
        for twin in [one for one in united if one.stage_id == source.stage_id and _share_a_run(one, source)]:
            united.remove(twin)
            source = join(twin, source, report)
        united.append(source)
    return united


def _share_a_run(one: Source, other: Source) -> bool:
    return any(_same_run(a, b) for a in one.attempts for b in other.attempts)


def _same_run(one: Attempt, other: Attempt) -> bool:
    """The same start; where only one has a file, and only one a row, also most of the same time."""
    apart = (one.file is not None and other.file is not None) or (one.row is not None and other.row is not None)
    return abs(one.start - other.start) < SAME_START_S or (not apart and one.overlaps(other))


def join(one: Source, other: Source, report: Report) -> Source:
    """One source with the attempts of both."""
    attempts: list[Attempt] = []
    for attempt in (*one.attempts, *other.attempts):
        twin = next((kept for kept in attempts if _same_run(kept, attempt)), None)
        if twin is None:
            attempts.append(attempt)
        else:
            _absorb(twin, attempt, report)
            report.add(
                "dropped", other.folder, f"the run of {one.stage_id} from {attempt.start:.0f} on is in {one.folder} as well"
            )
    return replace(
        one,
        attempts=sorted(attempts, key=lambda a: a.start),
        others=list(dict.fromkeys([*one.others, other.folder, *other.others])),
        files=[*one.files, *other.files],
        config=one.config or other.config,
        environment=one.environment or other.environment,
        summary=one.summary or other.summary,
    )


def _absorb(own: Attempt, other: Attempt, report: Report) -> None:
    """Add to an attempt what another folder has of it: of two files the one that says more, of two logs the longer."""
    files = [(a.file, a) for a in (own, other) if a.file is not None]
    if files:
        own.file, holder = max(files, key=lambda pair: pair[0].rank)
        own.start, own.environment = holder.start, holder.environment or own.environment or other.environment
        for file, _ in files:
            _compare(file, own.file, report)
    else:
        own.start = min(own.start, other.start)
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
        ours, attempt = _owners(sources, row), Attempt(end - row.duration_s, end, row=row)
        same = (a for s in ours for a in s.attempts if a.row is None and _as_long(a, row) and abs(a.end - end) < SAME_INSTANT_S)
        if (own := next(same, None)) is not None:
            own.row = row
        else:
            left.append((row, attempt, ours))
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


def _owners(sources: Sequence[Source], row: Row) -> list[Source]:
    """Stages that a row's project names: by their id, else by their experiment."""
    return [s for s in sources if s.stage_id == row.project] or [s for s in sources if experiment_name(s) == row.project]
