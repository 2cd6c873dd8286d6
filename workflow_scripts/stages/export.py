"""export: what others read of an experiment, its model card and its BoAmps reports.

    python -m workflow_scripts.stages.export --summary FILE --config FILE --model MANIFEST --out README.md --boamps DIR

From the experiment's summary and resolved configuration (run_config.yaml). The card lies in the final model's folder and is
no content of that artefact. The folder of BoAmps reports has experiment.json, one file per stage, and left_out.json with what
has no report, and why. The same summary gives the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from workflow_scripts.accounting.model import ExperimentSummary
from workflow_scripts.artefact import ArtefactError, open_artefact, write_json
from workflow_scripts.report import boamps, model_card


def main(arguments: list[str] | None = None) -> int:
    """Write card and reports."""
    parser = argparse.ArgumentParser(prog="workflow_scripts.stages.export", allow_abbrev=False)
    for name in ("summary", "config", "model", "out", "boamps"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    options = parser.parse_args(arguments)
    try:
        summary = ExperimentSummary.read(options.summary)
        config = yaml.safe_load(options.config.read_text(encoding="utf-8"))
        _, model = open_artefact(options.model, "model")
        reports, left_out = boamps.reports(summary, config, model)
    except (ArtefactError, boamps.BoampsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, report in reports.items():
        write_json(options.boamps / f"{name}.json", report)
    write_json(options.boamps / "left_out.json", left_out)
    for name, reason in left_out.items():
        print(f"warning: no BoAmps report of {name}: {reason}", file=sys.stderr)
    options.out.write_text(model_card.card(summary, config), encoding="utf-8")
    print(f"export: {options.out}, {len(reports)} BoAmps report(s), {len(left_out)} left out", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
