"""Which past stages a forecast rests on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.forecasts import STUDENT, planned, price, state, training
from workflow_scripts.estimate.history import read_history


def test_records_of_an_older_version_are_counted_not_used(folder: Path) -> None:
    for mark in ("a", "b"):
        state("student_train", mark, None, {"loss": 300, "input": 600}, 5000.0, 50.0)
    assert read_history(Path("results")) == (
        [],
        ["2 record(s) are of an older version, which does not name settings and inputs: not used"],
    )


@pytest.mark.parametrize(
    "content",
    ['{"stage_id": "student_tr', "[]", "{}", '{"provenance": {"fingerprint": "f"}}', '{"provenance": 3}', "\udcff", None],
)
def test_a_damaged_record_is_named_and_left_out(folder: Path, content: str | None) -> None:
    good = state("student_train", "good", training(300), {"loss": 300, "input": 600}, 5000.0, 50.0, **STUDENT)
    for bad in (Path("results/old/stages/student_train.json"), Path("results/state/evaluation/bad/record.json")):
        bad.parent.mkdir(parents=True)
        if content is None:
            bad.mkdir()
        else:
            bad.write_bytes(content.encode("utf-8", "surrogateescape"))
        history, notes = read_history(Path("results"))
        assert [past.record.stage_id for past in history] == ["student_train"]
        assert str(bad) in notes[0] and notes[0].startswith("left out: ")
        bad.rmdir() if content is None else bad.unlink()
    assert good.is_file()


def test_a_record_counts_once_and_needs_no_state_folder(folder: Path) -> None:
    record = state("student_train", "a", training(300), {"loss": 300, "input": 600}, 5000.0, 50.0, **STUDENT)
    own = Path("results/x/stages/student_train.json")
    own.parent.mkdir(parents=True)
    own.write_text(record.read_text())
    copied = Path("results/y/stages/prepare_model_student.json")
    copied.parent.mkdir(parents=True)
    copied.write_text(json.dumps(json.loads(record.read_text()) | {"stage_id": "copy", "shared_by": ["x", "y"]}))
    assert [len(part) for part in read_history(Path("results"))] == [1, 0]
    record.unlink()
    assert [past.record.stage_id for past in read_history(Path("results"))[0]] == ["student_train"]


def test_a_damaged_manifest_leaves_out_what_read_it(folder: Path) -> None:
    state("student_train", "a", training(300), {"loss": 300, "input": 600}, 5000.0, 50.0, **STUDENT)
    state("student_train", "b", training(300), {"loss": 300, "input": 600}, 7000.0, 50.0, **STUDENT | {"student": "models/cut"})
    Path("results/models/cut").mkdir()
    Path("results/models/cut/manifest.json").write_text('{"param')
    row = price(planned("student_train", training(300), **STUDENT))
    assert row.basis == "history n=1"
