"""Power logs, and rows of CodeCarbon's emissions.csv.

A power log has samples with real time stamps, integrated by the trapezoid rule; gaps are counted apart, attempts kept apart.
The first system appended to one power_log.csv per stage folder, so that a restarted stage goes on in the same file. Rows of
CodeCarbon are of any version, rotated files included; a row is one attempt, and its times have no zone.
"""

from __future__ import annotations

import csv
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workflow_scripts.errors import UserError
from workflow_scripts.importers.first_system.values import Report, local_time, not_negative

TIME, POWER = "timestamp", "total_power_w"
GAP_PERIODS = 2.0  # samples further apart than this many periods leave a gap
ATTEMPT_GAP_S = 60.0  # a running sampler has stood still for 41 s; nothing is integrated over more than this
LATEST = 1e11  # s, Unix; a larger time stamp is in ms
LARGEST_W = 1e5  # per sample, over all GPUs of a host
NEEDED = ("timestamp", "project_name", "run_id", "duration", "energy_consumed")
FIGURES = ("cpu_energy", "gpu_energy", "ram_energy", "energy_consumed", "emissions")


class PowerLogError(UserError):
    """A file that is no power log; the text says why."""


@dataclass(frozen=True)
class PowerLog:
    """Time stamps [s, Unix], [n], and power of all GPUs [W], [n], in order of time; rows that were left out."""

    times: np.ndarray
    watts: np.ndarray
    period_s: float
    bad_rows: int = 0
    repeated_rows: int = 0

    @property
    def start(self) -> float:
        """First time stamp."""
        return float(self.times[0])

    @property
    def end(self) -> float:
        """Last time stamp."""
        return float(self.times[-1])

    @property
    def joules(self) -> float:
        """Energy [J] from the first to the last sample, gaps included."""
        return float(self.curve()[-1])

    def curve(self) -> np.ndarray:
        """Energy [J] since the first sample, [n]."""
        return np.concatenate([[0.0], np.cumsum(np.diff(self.times) * (self.watts[1:] + self.watts[:-1]) / 2)])

    def joules_until(self, time: float) -> float:
        """Energy [J] up to a time: power is on the line between two samples, and stays for two periods after the last."""
        if time <= self.start:
            return 0.0
        time = min(time, self.end + GAP_PERIODS * self.period_s)
        times = np.append(self.times[self.times < time], time)
        return float(np.trapezoid(np.interp(times, self.times, self.watts), times))

    def gaps(self) -> tuple[int, float, float, float]:
        """Number of gaps, their seconds and joules (part of `joules`), and the longest distance of two samples [s]."""
        steps = np.diff(self.times)
        wide = steps > GAP_PERIODS * self.period_s
        joules = float(np.diff(self.curve())[wide].sum())
        return int(wide.sum()), float(steps[wide].sum()), joules, float(steps.max(initial=0.0))


def read_power_log(path: Path) -> PowerLog:
    """Read a log. Rows that are no samples are counted and left out. Raises PowerLogError when nothing is left."""
    with path.open(newline="", encoding="utf-8", errors="replace") as handle:
        rows = list(csv.reader(handle))
    if not rows:
        raise PowerLogError("the file is empty")
    header = [cell.strip() for cell in rows[0]]
    if TIME not in header or POWER not in header:
        raise PowerLogError(f"the first line has no {TIME} and {POWER}: a power log without its header is not guessed at")
    columns = header.index(TIME), header.index(POWER)
    samples, bad = [], 0
    for row in rows[1:]:
        seconds, watts = (not_negative(row[i]) if len(row) == len(header) else None for i in columns)
        if seconds and watts is not None and watts <= LARGEST_W:
            samples.append((seconds, watts))
        elif [cell.strip() for cell in row] != header:  # the header again, where two files were joined
            bad += 1
    distinct = sorted(dict(reversed(samples)).items())
    if late := sum(time > LATEST for time, _ in distinct):
        raise PowerLogError(f"{late} time stamp(s) are no Unix seconds (milliseconds?): {TIME} is expected in s")
    if len(distinct) < 2:
        raise PowerLogError(f"{len(distinct)} usable sample(s) in {len(rows) - 1} row(s): no time to integrate over")
    times, watts = np.array(distinct).T
    return PowerLog(times, watts, float(np.median(np.diff(times))), bad, len(samples) - len(distinct))


def split(log: PowerLog, starts: list[float], ends: list[float | None]) -> tuple[list[PowerLog | None], list[PowerLog]]:
    """Parts of a log by attempt, in the order of `starts`, and parts that belong to no known attempt.

    A log is cut where an attempt starts and where nothing was sampled for ATTEMPT_GAP_S, but not before an attempt's known end.
    """
    steps = np.diff(log.times)
    cuts = set()
    for i in np.flatnonzero(steps > ATTEMPT_GAP_S):
        if not any(s <= log.times[i] and e is not None and e >= log.times[i + 1] for s, e in zip(starts, ends, strict=True)):
            cuts.add(int(i) + 1)
    begins = [int(np.searchsorted(log.times, start - 2 * log.period_s)) for start in starts]
    edges = sorted({0, len(log.times), *cuts, *(b for b in begins if b < len(log.times))})
    spans = [(first, last) for first, last in itertools.pairwise(edges) if last - first > 1]
    parts = {first: PowerLog(log.times[first:last], log.watts[first:last], log.period_s) for first, last in spans}
    own: list[PowerLog | None] = []
    for begin, start in zip(begins, starts, strict=True):
        part = parts.get(begin)
        covers = part is not None and part.start - start < ATTEMPT_GAP_S
        own.append(parts.pop(begin) if covers else None)
    return own, list(parts.values())


@dataclass(frozen=True)
class Row:
    """One run of CodeCarbon: local end (as if UTC) [s], duration [s]; figures [kWh, kg] and filled cells by column."""

    path: Path
    project: str
    run_id: str
    local_end: float
    duration_s: float
    figures: dict[str, float | None]
    cells: dict[str, str]


def read_emissions(path: Path, report: Report) -> list[Row]:
    """Rows of one file. A file without a header, and a row that does not fit its header, is named, counted and left out."""
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8", errors="replace").splitlines()))
    except OSError as error:
        report.add("refused", path, str(error))
        return []
    header: list[str] = []
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        if set(NEEDED) <= set(line):
            header = line  # again where another version of CodeCarbon went on in the same file
        elif not header:
            what = "the file has no header" if number == 1 else f"line {number} stands before any header"
            report.add("refused", path, f"{what}: its {len(lines)} line(s) are not guessed at")
            return rows
        elif len(line) == len(header) and (row := _row(path, dict(zip(header, line, strict=True)))) is not None:
            rows.append(row)
        elif line:
            text = f"does not fit its header ({len(line)} of {len(header)} columns) or lacks times"
            report.add("refused", path, f"line {number} {text}")
    report.add(*("read", path, f"{len(rows)} row(s)") if header else ("refused", path, "the file is empty"))
    return rows


def _row(path: Path, cells: dict[str, str]) -> Row | None:
    end, duration = local_time(cells["timestamp"]), not_negative(cells["duration"])
    if end is None or not duration:
        return None
    run_id = cells["run_id"] or f"{cells['project_name']} of {cells['timestamp']}"
    figures = {name: not_negative(cells.get(name, "")) for name in FIGURES}
    filled = {name: text for name, text in cells.items() if text}
    return Row(path, cells["project_name"], run_id, end, duration, figures, filled)
