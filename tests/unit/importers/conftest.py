"""What an import of run folders wrote and printed."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from workflow_scripts.importers.import_runs import DETAILS, main

PACKAGE = Path(__file__).parents[3] / "workflow_scripts"
RECORD = json.loads((PACKAGE / "energy" / "record_schema.json").read_text())
SUMMARY = json.loads((PACKAGE / "accounting" / "summary_schema.json").read_text())


class Result:
    """What an import wrote and printed; everything written is checked against its schema."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        self.out = folder / "out"
        self.code = main([*arguments, "--out", str(self.out)])
        captured = capsys.readouterr()
        self.printed, details = captured.err, self.out / DETAILS
        self.report = captured.err + (details.read_text() if details.is_file() else "")
        self.summaries = {p.parent.name: json.loads(p.read_text()) for p in self.out.glob("*/experiment_summary.json")}
        for summary in self.summaries.values():
            jsonschema.validate(summary, SUMMARY)
        for path in self.out.glob("*/stages/*.json") if self.code == 0 else ():
            record = json.loads(path.read_text())
            jsonschema.validate(record, RECORD)
            assert record == {k: v for k, v in self.stage(path.parents[1].name, path.stem).items() if k != "shared_by"}

    def stage(self, experiment: str = "kd_x", stage: str = "student_train") -> dict:
        return self.summaries[experiment]["stages"][stage]

    def counted(self, kind: str) -> int:
        return int(next(line for line in self.printed.splitlines() if line.startswith(kind)).rsplit(": ", 1)[1])


@pytest.fixture
def run(tmp_path, capsys):
    return lambda *arguments: Result(tmp_path, capsys, *(arguments or (str(tmp_path / "run"),)))


@pytest.fixture
def stages(tmp_path) -> Path:
    return tmp_path / "run" / "stages"
