"""What a record on disk was made from, held against what is planned."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from snakemake.exceptions import WorkflowError

from tests.conftest import REPOSITORY
from workflow_scripts.energy.state import file_identity
from workflow_scripts.plan.code import code_digest, sources
from workflow_scripts.plan.jobs import Job
from workflow_scripts.plan.metered import Metered
from workflow_scripts.plan.snakemake_internals import differences, outdated

PLANNED = {"training.learning_rate=0.1", "code=abc"}


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, list[str]]:
    """A record, and its two inputs."""
    inputs = []
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        inputs.append(str(tmp_path / name))
    files = {path: file_identity(Path(path)) for path in inputs}
    known = {"settings": {"training": {"learning_rate": 0.1}}, "code": "abc", "files": files}
    record = tmp_path / "record.json"
    record.write_text(json.dumps({"provenance": known}))
    return record, inputs


def test_what_was_made_as_planned_is_fresh_also_elsewhere_and_with_other_times(made, tmp_path: Path) -> None:
    record, inputs = made
    assert differences(record, PLANNED, inputs) == (set(), set())
    (tmp_path / "moved").mkdir()
    moved = [str(Path(path).rename(tmp_path / "moved" / Path(path).name)) for path in inputs]
    os.utime(moved[0], (0, 0))
    assert differences(record, PLANNED, moved) == (set(), set())
    Path(moved[1]).unlink()
    assert differences(record, PLANNED, moved) == ({f"{inputs[1]}={file_identity_of('b')}"}, set())


def test_what_changed_is_named(made) -> None:
    record, inputs = made
    old, new = differences(record, {"training.learning_rate=0.2", "code=abc"}, inputs)
    assert (old, new) == ({"training.learning_rate=0.1"}, {"training.learning_rate=0.2"})
    Path(inputs[0]).write_text("other, and older")
    os.utime(inputs[0], (0, 0))
    old, new = differences(record, PLANNED, inputs)
    assert len(old) == len(new) == 1 and all(text.startswith(f"{inputs[0]}=") for text in old | new)
    Path(inputs[0]).unlink()
    assert differences(record, PLANNED, inputs) == (set(), set()), "what is deleted is made again when something needs it"


def test_an_input_that_is_planned_no_more_is_a_difference(made) -> None:
    record, inputs = made
    old, new = differences(record, PLANNED, inputs[:1])
    assert old == {f"{inputs[1]}={file_identity_of('b')}"} and not new


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"provenance": null}', '{"provenance": {"settings": {}, "code": "a", "files": null}}']
)
def test_a_damaged_record_is_stale(tmp_path: Path, content: str) -> None:
    record = tmp_path / "record.json"
    record.write_text(content)
    assert differences(record, PLANNED, []) == ({f"{record} is damaged"}, PLANNED)


def test_a_record_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    record.write_text('{"provenance": {"fingerprint": "x"}}')
    with pytest.raises(WorkflowError, match="earlier version"):
        differences(record, PLANNED, [])


def file_identity_of(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:12]


def test_the_code_of_a_job_does_not_depend_on_which_other_jobs_its_rule_has() -> None:
    job, other = Job({"training": {"beta": 1}}), Job({"distillation": {"alpha": 1}})
    alone = Metered("student_train", folder="x", output={}, jobs={"a": job}, by="experiment")
    both = Metered("student_train", folder="x", output={}, jobs={"a": job, "b": other}, by="experiment")
    assert alone.digest(job) == both.digest(job) != both.digest(other)


def test_code_that_decides_is_in_the_digest() -> None:
    def names(module: str) -> set[str]:
        return {str(Path(path).relative_to(REPOSITORY / "workflow_scripts")) for path in sources(f"workflow_scripts.{module}")}

    assert "settings/shapes.py" in names("stages.prepare_model")
    assert {"progress.py", "artefact.py", "distill/losses.py"} <= names("stages.student_train")
    assert {"report/boamps_schema/report_schema.json", "report/templates/card.md.j2"} <= names("stages.export")
    assert not {
        name for name in names("stages.student_train") if name.startswith(("energy", "pipelines", "stages/runtime/wandb"))
    }
    train = ("workflow_scripts.stages.student_train",)
    assert code_digest(train) != code_digest(train, ("training",)) != code_digest(train, ("dpo",))


def test_a_prerun_holds_for_its_settings_and_thirty_days(tmp_path: Path) -> None:
    made, settings = tmp_path / "validation.json", {"prerun": {"idle_seconds": 2.0}}
    assert outdated(made, Job(settings)) is None, "what is missing is made by Snakemake"
    made.write_text(json.dumps({"settings": settings, "idle": {"time": time.time() - 29 * 86400}}))
    assert outdated(made, Job(settings)) is None
    assert outdated(made, Job({"prerun": {"idle_seconds": 3.0}})) == ({"prerun.idle_seconds=2.0"}, {"prerun.idle_seconds=3.0"})
    made.write_text(json.dumps({"settings": settings, "idle": {"time": time.time() - 31 * 86400}}))
    assert outdated(made, Job(settings)) == ({"idle baseline=31 days old"}, {"idle baseline=at most 30"})
    made.write_text("{")
    assert outdated(made, Job(settings)) is not None
