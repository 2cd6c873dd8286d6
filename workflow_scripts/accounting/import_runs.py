"""import_runs: run folders of the first system as records and summaries of ours, for the comparison.

    python -m workflow_scripts.accounting.import_runs RUN_FOLDER … --out DIR
        [--stage NAME=STAGE …] [--utc-offset HOURS]

Writes DIR/<experiment>/experiment_summary.json with stages/ and traces/ beside it, and prints what was read, dropped, set to
null and refused. `--stage` says which of our stages a stage (by its id or folder) is where its name does not;
`--utc-offset` is that of CodeCarbon's local times where no file tells it. Results that were not imported are never replaced.
The exit code is 1 when nothing could be imported, 2 for arguments that are none.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from workflow_scripts.accounting.imported import summaries
from workflow_scripts.accounting.imported.attempts import Attempt, attempts_of, match_rows, utc_offset
from workflow_scripts.accounting.imported.emissions import Row
from workflow_scripts.accounting.imported.files import Reader, RunFolder, Source
from workflow_scripts.accounting.imported.naming import ROLES, Experiment, experiments
from workflow_scripts.accounting.imported.records import build
from workflow_scripts.accounting.imported.report import Report


def main(arguments: list[str] | None = None) -> int:
    """Import the folders, print the report."""
    parser = argparse.ArgumentParser(prog="workflow_scripts.accounting.import_runs", allow_abbrev=False)
    parser.add_argument("folders", nargs="+", metavar="RUN_FOLDER")
    parser.add_argument("--out", required=True)
    parser.add_argument("--stage", action="append", default=[], type=_named_stage, metavar="NAME=STAGE")
    parser.add_argument("--utc-offset", type=float, metavar="HOURS")
    options = parser.parse_args(arguments)
    report = Report()
    written = import_runs(
        [Path(f) for f in options.folders], Path(options.out), dict(options.stage), options.utc_offset, report
    )
    for path in written:
        print(path)
    print("\n".join(report.render()), file=sys.stderr)
    if not written:
        print(f"error: nothing could be imported from {len(options.folders)} folder(s)", file=sys.stderr)
    return 0 if written else 1


def _named_stage(text: str) -> tuple[str, str]:
    name, _, stage = text.partition("=")
    if stage not in ROLES:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=STAGE with STAGE one of {', '.join(ROLES)}")
    return name, stage


def import_runs(
    folders: Sequence[Path], out: Path, given: dict[str, str], utc_offset_hours: float | None, report: Report
) -> list[Path]:
    """Write everything that can be imported; returns the summaries' paths. Findings go into `report`."""
    reader = Reader(report)
    runs = [reader.run_folder(path) for path in dict.fromkeys(folder.resolve() for folder in folders)]
    attempts: dict[int, list[Attempt]] = {}
    for run in runs:
        for source in run.sources:
            attempts[id(source)] = attempts_of(source, report)
        run.sources = [source for source in run.sources if attempts[id(source)]]
        for source in _from_rows(run, attempts, given, utc_offset_hours, report):
            run.sources.append(source)
    written = []
    for experiment in experiments([source for run in runs for source in run.sources], given, report):
        folder = out / experiment.name
        if reason := summaries.refusal(folder):
            report.add("refused", experiment.name, reason)
            continue
        own = {stage: attempts[id(source)] for stage, source in experiment.stages.items()}
        records = {
            stage: build(experiment, stage, source, own[stage], source.rows, report)
            for stage, source in experiment.stages.items()
        }
        _missing(experiment, report)
        summaries.write(folder, summaries.summarise(experiment, records), own)
        written.append(folder / summaries.SUMMARY)
    return written


def _from_rows(
    run: RunFolder, attempts: dict[int, list[Attempt]], given: dict[str, str], hours: float | None, report: Report
) -> list[Source]:
    """Give CodeCarbon's rows to their attempts; those that are nobody's become stages of their own, by project."""
    left = run.rows
    for source in run.sources:
        source.rows = run.rows
        left = match_rows(attempts[id(source)], [source.stage_id, str(source.summary.get("experiment_name"))], left)
    if not left:
        return []
    offset = hours * 3600 if hours is not None else utc_offset(run.sources)
    if offset is None:
        report.add(
            "noted",
            run.path,
            "CodeCarbon's times have no zone and no file tells it: taken as UTC (--utc-offset says otherwise)",
        )
    by_project: dict[str, list[Row]] = {}
    for row in left:
        by_project.setdefault(row.project, []).append(row)
    taken = {source.stage_id for source in run.sources}
    made = []
    for project, rows in by_project.items():
        name = f"{project}-codecarbon" if project in taken else project
        source = Source(run.path, rows[-1].path.parent, name)
        ends = [row.local_end - (offset or 0.0) for row in rows]
        attempts[id(source)] = [Attempt(end - row.duration_s, end, row=row) for row, end in zip(rows, ends, strict=True)]
        what = "of the same name, but of another time or length than its record," if project in taken else "without a record"
        report.add("noted", source.folder, f"{len(rows)} row(s) of CodeCarbon {what} are attempts of experiment {name}")
        made.append(source)
    return made


def _missing(experiment: Experiment, report: Report) -> None:
    """Stages without which the experiment has no total, as the comparison will say as well."""
    from workflow_scripts.accounting.load import missing_stages

    content = {"pipeline": experiment.pipeline, "stages": {stage: {} for stage in experiment.stages}}
    for text in missing_stages(content):
        report.add("noted", experiment.name, text)


if __name__ == "__main__":
    sys.exit(main())
