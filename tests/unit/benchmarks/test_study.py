"""The published study: its table and verdicts, computed again from the data beside the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import study
from workflow_scripts.accounting.arms import SECOND_MODEL
from workflow_scripts.accounting.rows import Answer, Comparison
from workflow_scripts.accounting.verdicts import Verdict
from workflow_scripts.artefact import read_json
from workflow_scripts.energy.uncertainty import KWH

PUBLISHED = Comparison.model_validate(read_json(study.DATA / "comparison.json"))
ARMS = study.read(study.DATA / "runs.csv")
AGAIN = study.verdicts(ARMS, str(PUBLISHED.baseline))


def test_the_data_are_small_and_of_three_seeds_of_five_methods() -> None:
    assert sum(path.stat().st_size for path in study.DATA.iterdir() if path.suffix != ".svg") < 1e6
    assert {name: arm.seeds for name, arm in ARMS.items()} == {each.group: 3 for each in PUBLISHED.groups} and len(ARMS) == 5


@pytest.mark.parametrize("answer", PUBLISHED.answers, ids=lambda answer: answer.experiment)
def test_the_verdicts_follow_from_the_data(answer: Answer) -> None:
    found: Verdict = AGAIN[answer.experiment]
    if answer.refusals:
        assert answer.kind == "not comparable"
        return
    cause = {"own loss": "no curve"}.get(str(answer.cause), answer.cause)  # which says why there is none
    assert (answer.kind, answer.at_equal, cause) == (found.kind, found.at_equal, found.cause)
    assert answer.scenarios == dict(found.scenarios)
    figures = [
        *zip((answer.saved, answer.saved_low, answer.saved_high), found.saved, strict=True),
        *zip((answer.reuses, answer.reuses_low, answer.reuses_high), found.reuses, strict=True),
        *zip((answer.better, answer.better_low, answer.better_high), found.better, strict=True),
        (answer.target, found.target),
        (answer.teacher_kwh, None if found.teacher_j is None else found.teacher_j / KWH),
        (answer.method_kwh, None if found.method_j is None else found.method_j / KWH),
    ]
    assert [published for published, _ in figures] == [None if a is None else pytest.approx(a, rel=1e-9) for _, a in figures]


def test_no_verdict_asks_for_as_many_seeds_as_there_were() -> None:
    """Trainings repeat to 6 %, energies to a quality do not: of three seeds it was said that three would settle it."""
    undetermined = [row for row in PUBLISHED.answers if row.kind == "undetermined"]
    assert undetermined and all(row.seeds_needed is None or row.seeds_needed > row.runs for row in undetermined)


def test_the_qualities_of_the_table_are_those_of_the_rows() -> None:
    for arm in ARMS.values():
        (row,) = (each for each in PUBLISHED.groups if each.group == arm.name)
        means = [float(run.rows.sum() / run.tokens.sum()) for run in arm.runs]
        assert means == pytest.approx([float(run.loss[-1]) for run in arm.runs], rel=1e-6)
        assert row.column("cross_entropy_mean") == pytest.approx(sum(means) / len(means), rel=1e-6)


def test_every_energy_has_a_second_model() -> None:
    assert all(SECOND_MODEL in run.scenarios for arm in ARMS.values() for run in arm.runs)
    assert all(SECOND_MODEL in scenarios for arm in ARMS.values() for _, scenarios in arm.teacher)


@pytest.mark.parametrize(("path", "content"), [(study.PAGE, study.whole), (study.FRONT, study.extract)])
def test_both_pages_have_the_tables_of_the_data(path: Path, content: Callable[[Comparison], str]) -> None:
    text = path.read_text(encoding="utf-8")
    assert study.page(text, content(PUBLISHED)) == text


def test_the_page_has_the_table_of_the_students() -> None:
    text = study.PAGE.read_text(encoding="utf-8")
    assert (
        study.page(
            text, study.of_students(map(Comparison.model_validate, read_json(study.DATA / "students.json"))), study.OF_STUDENTS
        )
        == text
    )
    assert text.count("smollm2-46m-pruned |") == 5
