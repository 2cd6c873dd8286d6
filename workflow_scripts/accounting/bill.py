"""The bill of a campaign: what all the work in a results folder has cost to date, useful or not.

    python -m workflow_scripts.accounting.bill [RESULTS] [--json]

Read from the attempt ledgers in RESULTS/state (default: results); nothing is changed. Every attempt counts once, under

    useful        work that stands in a result which a record in the results still names
    wasted        work that survived nowhere: killed and not resumed, or never finished
    superseded    whole results that are no longer current: the configuration, an input or the code has changed since
    in progress   everything spent on a stage that a living meter works on

Deleting RESULTS/state forgets what it has cost; records whose ledgers are gone are charged by what they say themselves.
The same ledgers give the same bill. The exit code is 1 when nothing was found.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workflow_scripts.accounting.errors import figure_of, total
from workflow_scripts.accounting.versions import Found, Version, read_versions
from workflow_scripts.energy.model import CLASSES

SCHEMA = "campaign-bill/1"
COLUMNS = ("useful", "wasted", "superseded", "in_progress")
SHARED = "(shared)"


def main(arguments: list[str] | None = None) -> int:
    """Print the bill as a table, or as JSON."""
    parser = argparse.ArgumentParser(prog="workflow_scripts.accounting.bill", allow_abbrev=False)
    parser.add_argument("results", nargs="?", default="results", help="output.root of the configuration")
    parser.add_argument("--json", action="store_true", help="the whole bill as JSON, each version of each stage in it")
    options = parser.parse_args(arguments)
    made = bill(Path(options.results))
    if not made["versions"]:
        print(f"error: no attempt under {options.results}/state, no record beside it: name output.root", file=sys.stderr)
        return 1
    print(json.dumps(made, indent=1, allow_nan=False) if options.json else "\n".join(render(made)))
    return 0


def bill(root: Path) -> dict[str, Any]:
    """The bill of everything under a results folder: `total`, `stages`, `experiments`, `versions`; energies in J and kWh.

    A row's `joules` is the sum of its attempts and of its four columns; attempts without a figure are counted in
    `without_figure` and are in no sum.
    """
    found = read_versions(root)
    versions = [_row(version) for version in found.versions] + [_orphan(record) for record in found.orphans]
    records = [r for v in found.versions for r in v.records] + found.orphans
    ends = [attempt["end_time"] for record in records for attempt in record["attempts"]]
    return {
        "schema": SCHEMA,
        "root": str(root),
        "until": max(ends, default=None),
        "total": _sum(versions) | _quality(records),
        "stages": [{"stage": name, **_sum(rows)} for name, rows in _grouped(versions, lambda v: v["stage"])],
        "experiments": [{"experiment": name, **_sum(rows)} for name, rows in _grouped(versions, _payer)],
        "versions": versions,
        "damaged": found.damaged,
        "notes": _notes(found, versions),
    }


def _row(version: Version) -> dict[str, Any]:
    """One version of a stage: its attempts added up into the columns; all of them null when no attempt has a figure."""
    known = [a for a in version.attempts if a["total_j"] is not None]
    spent, lost = (math.fsum(a[key] for a in known) for key in ("total_j", "wasted_j"))
    columns: dict[str, float | None] = dict.fromkeys(COLUMNS, 0.0 if known else None)
    if known and version.standing == "in progress":
        columns["in_progress"] = spent
    elif known and version.standing == "unfinished":
        columns["wasted"] = spent
    elif known:
        columns["useful" if version.standing == "current" else "superseded"] = spent - lost
        columns["wasted"] = lost
    return {
        "stage": version.stage,
        "experiment": version.start.get("experiment"),
        "fingerprint": version.fingerprint,
        "standing": version.standing,
        "began": version.began,
        "seconds": math.fsum(a["duration_seconds"] for a in version.attempts),
        "versions": 1,
        "attempts": len(version.attempts),
        "without_figure": len(version.attempts) - len(known),
        **{f"{name}_j": value for name, value in columns.items()},
        "joules": _add(columns.values()),
    }


def _orphan(record: dict[str, Any]) -> dict[str, Any]:
    """A record whose ledgers are gone or unreadable: all that is known of its stage."""
    mark = record["provenance"]["fingerprint"]
    alone = Version(record["stage_id"], mark, Path(), [record], {}, "current")
    return _row(alone) | {"experiment": record.get("experiment"), "standing": "current, by its record alone"}


def _sum(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rows added up, those without a figure left out; kWh beside the joules."""
    joules = {key: _add(row[key] for row in rows) for key in (*(f"{name}_j" for name in COLUMNS), "joules")}
    kwh = {
        "kwh" if key == "joules" else f"{key[:-2]}_kwh": None if value is None else value / 3.6e6
        for key, value in joules.items()
    }
    counts = {key: sum(row[key] for row in rows) for key in ("versions", "attempts", "without_figure")}
    return {**counts, "seconds": math.fsum(row["seconds"] for row in rows), **joules, **kwh}


def _add(values: Iterable[float | None]) -> float | None:
    """Sum of what is known; None when nothing is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) if known else None


def _grouped(rows: Iterable[dict[str, Any]], key: Callable[[dict[str, Any]], str]) -> list[tuple[str, list[dict[str, Any]]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return sorted(groups.items(), key=lambda item: (item[0] == SHARED, item[0]))


def _payer(row: dict[str, Any]) -> str:
    """The experiment that a stage belongs to; what several can use is nobody's alone."""
    return row["experiment"] or SHARED


def _quality(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How the total was obtained: worst class, boundaries, uncertainty; grams where every stage has them."""
    known = [record for record in records if record["total_energy_joules"] is not None]
    whole = total(figure for record in known if (figure := figure_of(record)) is not None)
    grams = [record["carbon"]["grams"] for record in known]
    return {
        "class": max((r["energy"]["total"]["class"] for r in known), key=CLASSES.index, default="unavailable"),
        "boundary": sorted({"+".join(r["energy"]["total"]["boundary"]) for r in known}),
        "uncertainty_kwh": whole.half_width / 3.6e6 if whole.half_width is not None else None,
        "carbon_grams": None if not grams or None in grams else math.fsum(grams),
    }


def _notes(found: Found, versions: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader must know to read the figures right."""
    notes = []
    unfinished = [v for v in found.versions if v.standing == "unfinished"]
    if unfinished:
        names = ", ".join(sorted({v.stage for v in unfinished}))
        notes.append(f"{len(unfinished)} version(s) were never finished ({names}): all waste, until a rerun resumes them")
    if silent := sum(v["without_figure"] for v in versions):
        notes.append(f"{silent} attempt(s) ended before a source had a figure: what they cost is in no sum")
    if found.silent:
        notes.append(f"{len(found.silent)} ledger(s) have no whole line, their meters ended at once: {', '.join(found.silent)}")
    if found.orphans:
        notes.append(f"{len(found.orphans)} record(s) have no readable ledger (deleted or damaged): charged as they stand")
    if found.imported:
        notes.append(f"{found.imported} imported record(s) are of work that was not done here: they are not on this bill")
    notes += [f"damaged, left out: {entry['path']}: {entry['reason']}" for entry in found.damaged]
    boundaries = {"+".join(r["energy"]["total"]["boundary"]) for v in found.versions for r in v.records if r["useful_j"]}
    if len(boundaries) > 1:
        notes.append(f"the sum adds up unlike boundaries: {', '.join(sorted(boundaries))}")
    return notes


def render(made: dict[str, Any]) -> list[str]:
    """Lines of the table [kWh]: by stage, by experiment, the total, how it was obtained, and the notes."""
    whole = made["total"]
    lines = [f"What the work in {made['root']} has cost until {_date(made['until'])}, kWh", ""]
    lines += [*_table("stage", made["stages"], whole), "", *_table("experiment", made["experiments"], whole), ""]
    spread = "unknown uncertainty" if whole["uncertainty_kwh"] is None else f"+/- {whole['uncertainty_kwh']:.6f} kWh"
    grams = "unknown" if whole["carbon_grams"] is None else f"{whole['carbon_grams']:.3g} gCO2e"
    lines.append(f"Energy: {whole['class']}, boundary {' | '.join(whole['boundary']) or 'none'}, {spread}. Emissions: {grams}.")
    lines.append(f"{SHARED}: models, corpora, teacher's output, references and comparisons, which several experiments can use.")
    return lines + [f"note: {text}" for text in made["notes"]]


def _table(head: str, rows: Sequence[dict[str, Any]], whole: dict[str, Any]) -> list[str]:
    energies = [*(f"{name}_kwh" for name in COLUMNS), "kwh"]
    titles = [head, "versions", "attempts", *(name.replace("_", " ") for name in COLUMNS), "total"]
    cells = [
        [name, str(row["versions"]), str(row["attempts"]), *(_kwh(row[key]) for key in energies)]
        for name, row in [*((row[head], row) for row in rows), ("total", whole)]
    ]
    widths = [max(len(line[i]) for line in (titles, *cells)) for i in range(len(titles))]
    rule = ["-" * width for width in widths]
    return [
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
        for line in (titles, rule, *cells[:-1], rule, cells[-1])
    ]


def _kwh(value: float | None) -> str:
    """`-` is nothing, `?` is not known."""
    return "?" if value is None else f"{value:.6f}" if value else "-"


def _date(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


if __name__ == "__main__":
    sys.exit(main())
