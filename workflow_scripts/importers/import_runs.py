"""import_runs: run folders of the first system as records and summaries of ours, for the comparison.

    python -m workflow_scripts.importers.import_runs RUN_FOLDER … --out DIR
        [--stage NAME=STAGE …] [--into NAME=EXPERIMENT …] [--utc-offset HOURS]

Writes DIR/<experiment>/experiment_summary.json with stages/ and traces/ beside it, and prints what was read, dropped, set to
null and refused. NAME is a stage's id or folder: `--stage` says which of our stages it is where its name does not, `--into`
which experiment it belongs to, several times for a teacher's output that several experiments used. `--utc-offset` is that of
CodeCarbon's local times where no file tells it. Results that were not imported are never replaced. The exit code is 1 when
nothing could be imported.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from workflow_scripts.accounting.model import ExperimentSummary
from workflow_scripts.importers.first_system import records
from workflow_scripts.importers.first_system.attempts import find_attempts, match_rows, utc_offset
from workflow_scripts.importers.first_system.files import SUMMARY, Attempt, Reader, Source
from workflow_scripts.importers.first_system.logs import Row
from workflow_scripts.importers.first_system.naming import Given, experiments
from workflow_scripts.importers.first_system.values import Report
from workflow_scripts.pipelines import IN_SUMMARY


def main(arguments: list[str] | None = None) -> int:
    """Import the folders, print the report."""
    parser = argparse.ArgumentParser(prog="workflow_scripts.importers.import_runs", allow_abbrev=False)
    parser.add_argument("folders", nargs="+", metavar="RUN_FOLDER")
    parser.add_argument("--out", required=True)
    parser.add_argument("--stage", action="append", default=[], type=_named_stage, metavar="NAME=STAGE")
    parser.add_argument("--into", action="append", default=[], type=_named_experiment, metavar="NAME=EXPERIMENT")
    parser.add_argument("--utc-offset", type=float, metavar="HOURS")
    options = parser.parse_args(arguments)
    report = Report()
    owners: dict[str, list[str]] = {}
    for name, experiment in options.into:
        owners.setdefault(name, []).append(experiment)
    given = Given(dict(options.stage), owners)
    written = import_runs([Path(f) for f in options.folders], Path(options.out), given, options.utc_offset, report)
    for path in written:
        print(path)
    print("\n".join(report.render()), file=sys.stderr)
    if not written:
        print(f"error: nothing could be imported from {len(options.folders)} folder(s)", file=sys.stderr)
    return 0 if written else 1


def _named_stage(text: str) -> list[str]:
    name, _, stage = text.partition("=")
    if stage not in IN_SUMMARY:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=STAGE with STAGE one of {', '.join(IN_SUMMARY)}")
    return [name, stage]


def _named_experiment(text: str) -> list[str]:
    if not re.fullmatch(r"[^=]+=[A-Za-z0-9_.-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=EXPERIMENT, of letters, digits and _ . -")
    return text.split("=", 1)


def import_runs(folders: Sequence[Path], out: Path, given: Given, utc_offset_hours: float | None, report: Report) -> list[Path]:
    """Write everything that can be imported; returns the summaries' paths. Findings go into `report`."""
    reader, sources, written = Reader(report), [], []
    for path in {folder.resolve(): folder for folder in folders}.values():
        read, rows = reader.run_folder(path)
        for source in read:
            find_attempts(source, report)
        read = [source for source in read if source.attempts]
        sources += [*read, *_from_rows(path, read, rows, utc_offset_hours, report)]
    for experiment in experiments(sources, given, report):
        folder = out / experiment.name
        if reason := records.refusal(folder):
            report.add("refused", experiment.name, reason)
            continue
        summary = records.summarise(experiment, report)
        records.write(folder, summary, experiment)
        written.append(folder / SUMMARY)
        _tell(summary, report)
    return written


def _from_rows(run: Path, sources: list[Source], all_rows: list[Row], hours: float | None, report: Report) -> list[Source]:
    """Give CodeCarbon's rows to their attempts; those that are nobody's become stages of their own, by project."""
    left = all_rows
    for source in sources:
        source.rows = [row for row in all_rows if row.project == source.stage_id]
        left = match_rows(source, left)
    if not left:
        return []
    offset = hours * 3600 if hours is not None else utc_offset(sources)
    if offset is None:
        text = "CodeCarbon's times have no zone and no file tells it: taken as UTC (--utc-offset says otherwise)"
        report.add("noted", run, text)
    by_project: dict[str, list[Row]] = {}
    for row in left:
        by_project.setdefault(row.project, []).append(row)
    taken = {source.stage_id for source in sources}
    made = []
    for project, rows in by_project.items():
        name = f"{project}-codecarbon" if project in taken else project
        source = Source(run, rows[-1].path.parent, name)
        ends = [row.local_end - (offset or 0.0) for row in rows]
        source.attempts = [Attempt(end - row.duration_s, end, row=row) for row, end in zip(rows, ends, strict=True)]
        what = "of the same name, but of another time or length than its record," if project in taken else "without a record"
        report.add("noted", source.folder, f"{len(rows)} row(s) of CodeCarbon {what} are attempts of experiment {name}")
        made.append(source)
    return made


def _tell(summary: ExperimentSummary, report: Report) -> None:
    """One line per experiment, and the stages without which it has no total, as the comparison will say as well."""
    parts = []
    for stage, record in summary.stages.items():
        spent, tokens = record.spent, record.tokens_processed
        kwh = "unknown energy" if spent is None else f"{spent.kwh:.6f} kWh"
        how = f"{record.energy.total.energy_class}, {record.boundary or 'nothing'}"
        done = f"{tokens:,} {record.tokens_unit} tokens" if tokens else "tokens unknown"
        parts.append(f"{stage} {kwh} ({how}), {done}")
    report.add("imported", summary.experiment_name, f"{summary.pipeline}: {'; '.join(parts)}")
    for problem in summary.problems:
        report.add("missing", summary.experiment_name, f"{problem.text} (--into gives it one from another folder)")


if __name__ == "__main__":
    sys.exit(main())
