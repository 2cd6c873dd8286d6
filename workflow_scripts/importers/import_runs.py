"""import_runs: run folders of the first system as records and summaries of ours, for the comparison.

    python -m workflow_scripts.importers.import_runs RUN_FOLDER … --out DIR
        [--stage NAME=STAGE …] [--into NAME=EXPERIMENT …] [--utc-offset HOURS]

Writes DIR/<experiment>/experiment_summary.json with stages/ and traces/ beside it, and DIR/import_report.txt: what was read,
dropped, set to null and refused; the counts of that are printed. A run is its stage id and start: copies count once, over all
folders, and runs of one stage are its attempts. NAME is a stage's id or folder: `--stage` says which of our stages it is where
its name does not, `--into` which experiment it belongs to, several times for a teacher's output that several experiments used.
`--utc-offset` is that of the first system's local times where no file tells it. Results that were not imported are never
replaced, and nothing is written outside DIR. The exit code is 1 when nothing could be imported.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from workflow_scripts.accounting.model import ExperimentSummary
from workflow_scripts.errors import UserError
from workflow_scripts.importers.first_system import identity, records
from workflow_scripts.importers.first_system.files import SUMMARY, Attempt, Source, read_run_folder
from workflow_scripts.importers.first_system.logs import Row
from workflow_scripts.importers.first_system.values import Report
from workflow_scripts.pipelines import IN_SUMMARY

DETAILS = "import_report.txt"
GIVEN = 1_000_000  # files' worth: the user's word on the time zone


def main(arguments: list[str] | None = None) -> int:
    """Import the folders, print the report."""
    parser = argparse.ArgumentParser(prog="workflow_scripts.importers.import_runs", allow_abbrev=False)
    parser.add_argument("folders", nargs="+", metavar="RUN_FOLDER")
    parser.add_argument("--out", required=True)
    parser.add_argument("--stage", action="append", default=[], type=_named_stage, metavar="NAME=STAGE")
    parser.add_argument("--into", action="append", default=[], type=_named_experiment, metavar="NAME=EXPERIMENT")
    parser.add_argument("--utc-offset", type=float, metavar="HOURS")
    options = parser.parse_args(arguments)
    report, out = Report(), Path(options.out)
    owners: dict[str, list[str]] = {}
    for name, experiment in options.into:
        owners.setdefault(name, []).append(experiment)
    given = identity.Given(dict(options.stage), owners)
    details = out / DETAILS
    if next(p for p in (out, *out.parents) if p.exists()).is_file() or details.is_symlink():
        raise UserError(f"--out {out}: a file or a link is in the way, expected a folder: choose another --out")
    written = import_runs([Path(f) for f in options.folders], out, given, options.utc_offset, report)
    try:
        out.mkdir(parents=True, exist_ok=True)
        details.write_text(report.render(details=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}: choose a folder that can be written") from error
    print(report.render(), f"details: {details}", sep="\n", file=sys.stderr)
    if not written:
        print(f"error: nothing could be imported from {len(options.folders)} folder(s)", file=sys.stderr)
    return 0 if written else 1


def _named_stage(text: str) -> list[str]:
    name, _, stage = text.partition("=")
    if stage not in IN_SUMMARY:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=STAGE with STAGE one of {', '.join(IN_SUMMARY)}")
    return [name, stage]


def _named_experiment(text: str) -> list[str]:
    if not re.fullmatch(r"[^=]+=[A-Za-z0-9][A-Za-z0-9_.-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=EXPERIMENT, a letter or digit, then letters, digits, _ . -")
    return text.split("=", 1)


def import_runs(folders: Sequence[Path], out: Path, given: identity.Given, hours: float | None, report: Report) -> list[Path]:
    """Write everything that can be imported; returns the summaries' paths. Findings go into `report`.

    The result does not depend on the order of the folders. Local times are `hours` from UTC, None: as the files tell. Raises
    UserError when `given` names what is not there.
    """
    rows: dict[str, Row] = {}
    read = [source for path in sorted({f.resolve() for f in folders}) for source in read_run_folder(path, rows, report)]
    for source in read:
        identity.find_attempts(source, report)
    sources = identity.unite([source for source in read if source.attempts], given, report)
    sources += _from_rows(sources, list(rows.values()), hours, report)
    given.check(sources)
    written = []
    for source in sources:
        identity.note_overlaps(source, report)
    for experiment in identity.experiments(sorted(sources, key=lambda s: (s.attempts[0].start, s.stage_id)), given, report):
        folder = out / experiment.name
        if reason := records.refusal(folder):
            report.add("refused", experiment.name, reason)
            continue
        try:
            summary = records.summarise(experiment, report)
            records.write(folder, summary, experiment)
        except (OSError, ValidationError) as error:
            report.add("refused", experiment.name, " ".join(str(error).split()))
            continue
        written.append(folder / SUMMARY)
        _tell(summary, report)
    return written


def _from_rows(sources: Sequence[Source], rows: list[Row], hours: float | None, report: Report) -> list[Source]:
    """Give CodeCarbon's rows to their stages; those that are nobody's become stages of their own, by project."""
    zone = identity.zones(sources, rows) if hours is None else {hours * 3600: GIVEN}
    if not zone and rows:
        text = "CodeCarbon's times have no zone and no file tells it: taken as UTC (--utc-offset says otherwise)"
        report.add("noted", rows[0].path.parent, text)
    for source in sources:
        source.zone = zone
        source.rows = [row for row in rows if row.project == source.stage_id]
    by_project: dict[str, list[tuple[Row, Attempt]]] = {}
    offset = max(zone, key=lambda seconds: (zone[seconds], seconds), default=0.0)
    for row, attempt in identity.match_rows(sources, sorted(rows, key=lambda row: row.local_end), offset, report):
        by_project.setdefault(row.project, []).append((row, attempt))
    taken = {source.stage_id for source in sources}
    made = []
    for project, pairs in by_project.items():
        name = f"{project}-codecarbon" if project in taken else project
        folder = pairs[-1][0].path.parent
        run = folder.parent if folder.name == "codecarbon" else folder
        made.append(Source(run, folder, name, attempts=sorted((attempt for _, attempt in pairs), key=lambda a: a.start)))
        what = "of a name that several stages have" if project in taken else "without a record"
        report.add("noted", folder, f"{len(pairs)} row(s) of CodeCarbon {what} are attempts of experiment {name}")
    return made


def _tell(summary: ExperimentSummary, report: Report) -> None:
    """One line per experiment, and the stages without which it has no total, as the comparison will say as well."""
    parts = []
    for stage, record in summary.stages.items():
        kwh = "unknown energy" if record.spent is None else f"{record.spent.kwh:.6f} kWh"
        tokens = f"{record.tokens_processed:,} {record.tokens_unit} tokens" if record.tokens_processed else "tokens unknown"
        parts.append(f"{stage} {kwh} ({record.energy.total.energy_class}, {record.boundary or 'nothing'}), {tokens}")
    report.add("imported", summary.experiment_name, f"{summary.pipeline}: {'; '.join(parts)}")
    for problem in summary.problems:
        report.add("missing", summary.experiment_name, f"{problem.text} (--into gives it one from another folder)")


if __name__ == "__main__":
    sys.exit(main())
