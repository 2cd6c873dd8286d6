"""Rows of CodeCarbon's emissions.csv, of any version, rotated files included. A row is one attempt; its times have no zone."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from workflow_scripts.importers.first_system.report import Report
from workflow_scripts.importers.first_system.values import float_or_none, local_time

NEEDED = ("timestamp", "project_name", "run_id", "duration", "energy_consumed")
ENERGIES = ("cpu_energy", "gpu_energy", "ram_energy", "energy_consumed")
TEXTS = ("codecarbon_version", "cpu_model", "gpu_model", "tracking_mode", "os", "python_version", "country_iso_code")


@dataclass(frozen=True)
class Row:
    """One run of CodeCarbon: local time of its end (as if UTC) [s], duration [s], energies [kWh], emissions [kg]."""

    path: Path
    project: str
    run_id: str
    local_end: float
    duration_s: float
    kwh: dict[str, float | None]
    emissions_kg: float | None
    facts: dict[str, str]


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
    end, duration = local_time(cells["timestamp"]), _float(cells["duration"])
    if end is None or duration is None or duration <= 0:
        return None
    return Row(
        path=path,
        project=cells["project_name"],
        run_id=cells["run_id"] or f"{cells['project_name']} of {cells['timestamp']}",
        local_end=end,
        duration_s=duration,
        kwh={name: _float(cells.get(name, "")) for name in ENERGIES},
        emissions_kg=_float(cells.get("emissions", "")),
        facts={name: cells[name] for name in TEXTS if cells.get(name)},
    )


def _float(text: str) -> float | None:
    value = float_or_none(text)
    return value if value is not None and value >= 0 else None
