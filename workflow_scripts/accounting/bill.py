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
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from tabulate import SEPARATING_LINE, tabulate

from workflow_scripts.accounting.model import sum_of
from workflow_scripts.accounting.versions import Found, Version, read_versions
from workflow_scripts.energy.documents import Closed, Document, is_none
from workflow_scripts.energy.model import known_energy
from workflow_scripts.energy.uncertainty import KWH
from workflow_scripts.settings.runs import method_of

COLUMNS = ("useful", "wasted", "superseded", "in_progress")
SHARED = "(shared)"


def main(arguments: list[str] | None = None) -> int:
    """Print the bill as a table, or as JSON."""
    parser = argparse.ArgumentParser(prog="workflow_scripts.accounting.bill", allow_abbrev=False)
    parser.add_argument("results", nargs="?", default="results", help="output.root of the configuration")
    parser.add_argument("--json", action="store_true", help="the whole bill as JSON, each version of each stage in it")
    options = parser.parse_args(arguments)
    made = bill(Path(options.results))
    if not made.versions:
        print(f"error: no attempt under {options.results}/state, no record beside it: name output.root", file=sys.stderr)
        return 1
    print(json.dumps(made.content(), indent=1, allow_nan=False) if options.json else "\n".join(render(made)))
    return 0


class Sums(Closed):
    """Attempts added up [J, kWh, s]. A null has no figure; attempts without one are counted in `without_figure`, in no sum."""

    stage: str | None = Field(None, exclude_if=is_none)
    experiment: str | None = Field(None, exclude_if=is_none)
    method: str | None = Field(None, exclude_if=is_none)
    versions: int
    attempts: int
    without_figure: int
    seconds: float
    useful_j: float | None
    wasted_j: float | None
    superseded_j: float | None
    in_progress_j: float | None
    joules: float | None = None  # the four columns added up
    useful_kwh: float | None = None
    wasted_kwh: float | None = None
    superseded_kwh: float | None = None
    in_progress_kwh: float | None = None
    kwh: float | None = None

    @model_validator(mode="after")
    def _add_up(self) -> Self:
        self.joules = _add(getattr(self, f"{name}_j") for name in COLUMNS)
        for key, joules in ((f"{name}_kwh", getattr(self, f"{name}_j")) for name in COLUMNS):
            setattr(self, key, None if joules is None else joules / KWH)
        self.kwh = None if self.joules is None else self.joules / KWH
        return self

    @classmethod
    def of(cls, rows: Sequence[Sums], **more: Any) -> Self:
        """Rows added up, those without a figure left out."""
        columns = {f"{name}_j": _add(getattr(row, f"{name}_j") for row in rows) for name in COLUMNS}
        counts = {key: sum(getattr(row, key) for row in rows) for key in ("versions", "attempts", "without_figure")}
        return cls.model_validate({**counts, "seconds": math.fsum(row.seconds for row in rows), **columns, **more})


class VersionRow(Sums):
    """One version of a stage."""

    fingerprint: str
    experiment: str | None = None  # null: of a shared artefact
    status: str
    began: float


class Total(Sums):
    """Everything, and how it was obtained: worst class, boundaries, uncertainty; grams where every stage has them."""

    energy_class: str = Field(alias="class")
    boundary: list[str]
    uncertainty_kwh: float | None
    carbon_grams: float | None


class Bill(Document):
    """`campaign-bill/1`: the bill of everything under a results folder."""

    schema_: Literal["campaign-bill/1"] = Field("campaign-bill/1", alias="schema")
    root: str
    until: float | None
    total: Total
    stages: list[Sums]
    experiments: list[Sums]
    methods: list[Sums]  # runs of one method added up; empty where no experiment has several
    versions: list[VersionRow]
    damaged: list[dict[str, str]]
    notes: list[str]


def bill(root: Path) -> Bill:
    """The bill of everything under a results folder."""
    found = read_versions(root)
    alone = [
        Version(r.stage_id, r.provenance.fingerprint or "", [r], [{"experiment": r.experiment}], "current, by its record alone")
        for r in found.orphans
    ]
    rows = [_row(version) for version in (*found.versions, *alone)]
    records = [r for v in (*found.versions, *alone) for r in v.records]
    figured = [record for record in records if any(attempt.total_j is not None for attempt in record.attempts)]
    whole, grams = known_energy(records), [record.carbon.grams for record in figured]
    unsure = any(row.without_figure for row in rows) or any(record.spent is None for record in figured)
    experiments = _grouped(rows, "experiment", lambda row: row.experiment or SHARED)
    methods = _grouped(rows, "method", lambda row: method_of(row.experiment or SHARED))
    return Bill(
        root=str(root),
        until=max((attempt.end_time for record in records for attempt in record.attempts), default=None),
        total=Total.of(
            rows,
            energy_class=whole.energy_class or "unavailable",
            boundary=sorted(whole.boundaries),
            uncertainty_kwh=None if unsure else whole.uncertainty_kwh,
            carbon_grams=sum_of(grams),
        ),
        stages=_grouped(rows, "stage", lambda row: row.stage or SHARED),
        experiments=experiments,
        methods=methods if len(methods) < len(experiments) else [],
        versions=rows,
        damaged=found.damaged,
        notes=_notes(found, rows),
    )


def _row(version: Version) -> VersionRow:
    """One version of a stage: its attempts added up into the columns; all of them null when no attempt has a figure."""
    known = [a for a in version.attempts if a.total_j is not None]
    spent, lost = math.fsum(a.total_j or 0.0 for a in known), math.fsum(a.wasted_j or 0.0 for a in known)
    columns: dict[str, float | None] = dict.fromkeys(COLUMNS, 0.0 if known else None)
    if known and version.status == "in progress":
        columns["in_progress"] = spent
    elif known and version.status == "unfinished":
        columns["wasted"] = spent
    elif known:
        columns["superseded" if version.status == "superseded" else "useful"] = spent - lost
        columns["wasted"] = lost
    return VersionRow(
        stage=version.stage,
        experiment=version.start.get("experiment"),
        fingerprint=version.fingerprint,
        status=version.status,
        began=version.began,
        seconds=math.fsum(a.duration_seconds for a in version.attempts),
        versions=1,
        attempts=len(version.attempts),
        without_figure=len(version.attempts) - len(known),
        **{f"{name}_j": value for name, value in columns.items()},
    )


def _add(values: Iterable[float | None]) -> float | None:
    """Sum of what is known; None when nothing is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) if known else None


def _grouped(rows: Iterable[VersionRow], what: str, key: Callable[[VersionRow], str]) -> list[Sums]:
    """Rows of one key added up, in the order of the keys, what is shared last; the sums say the key under `what`."""
    in_order = sorted(rows, key=lambda row: (key(row) == SHARED, key(row)))
    return [Sums.of(list(own), **{what: name}) for name, own in itertools.groupby(in_order, key)]


def _notes(found: Found, rows: Sequence[VersionRow]) -> list[str]:
    """What a reader must know to read the figures right."""
    notes = []
    if unfinished := [v for v in found.versions if v.status == "unfinished"]:
        names = ", ".join(sorted({v.stage for v in unfinished}))
        notes.append(f"{len(unfinished)} version(s) were never finished ({names}): all waste, until a rerun resumes them")
    if silent := sum(row.without_figure for row in rows):
        notes.append(f"{silent} attempt(s) ended before a source had a figure: what they cost is in no sum")
    if found.silent:
        notes.append(f"{len(found.silent)} ledger(s) have no whole line, their meters ended at once: {', '.join(found.silent)}")
    if found.orphans:
        notes.append(f"{len(found.orphans)} record(s) have no readable ledger (deleted or damaged): charged as they stand")
    if found.imported:
        notes.append(f"{found.imported} imported record(s) are of work that was not done here: they are not on this bill")
    notes += [f"damaged, left out: {entry['path']}: {entry['reason']}" for entry in found.damaged]
    boundaries = {r.boundary for v in found.versions for r in v.records if r.useful_j}
    if len(boundaries) > 1:
        notes.append(f"the sum adds up unlike boundaries: {', '.join(sorted(boundaries))}")
    return notes


def render(made: Bill) -> list[str]:
    """Lines of the table [kWh]: by stage, by experiment and method, the total, how it was obtained, and the notes."""
    whole = made.total
    until = "unknown" if made.until is None else f"{datetime.fromtimestamp(made.until, UTC):%Y-%m-%d %H:%M:%S} UTC"
    spread = "unknown uncertainty" if whole.uncertainty_kwh is None else f"+/- {whole.uncertainty_kwh:.6f} kWh"
    grams = "unknown" if whole.carbon_grams is None else f"{whole.carbon_grams:.3g} gCO2e"
    return [
        *(f"What the work in {made.root} has cost until {until}, kWh", ""),
        *(_table("stage", made.stages, whole), ""),
        *(_table("experiment", made.experiments, whole), ""),
        *((_table("method", made.methods, whole), "") if made.methods else ()),
        f"Energy: {whole.energy_class}, boundary {' | '.join(whole.boundary) or 'none'}, {spread}. Emissions: {grams}.",
        f"{SHARED}: models, corpora, teacher's output, references and comparisons, which several experiments can use.",
        *(f"note: {text}" for text in made.notes),
    ]


def _table(head: str, rows: Sequence[Sums], whole: Total) -> str:
    """A table with the total under a rule; `-` is nothing, `?` is not known."""
    titles = [head, "versions", "attempts", *(name.replace("_", " ") for name in COLUMNS), "total"]
    cells: list[list[str]] = []
    for row in (*rows, whole):
        energies = [*(getattr(row, f"{name}_kwh") for name in COLUMNS), row.kwh]
        name = getattr(row, head) or "total"
        figures = ("?" if value is None else f"{value:.6f}" if value else "-" for value in energies)
        cells.append([name, str(row.versions), str(row.attempts), *figures])
    align = ("left", *("right",) * (len(titles) - 1))
    return tabulate([*cells[:-1], SEPARATING_LINE, cells[-1]], titles, "simple", disable_numparse=True, colalign=align)


if __name__ == "__main__":
    sys.exit(main())
