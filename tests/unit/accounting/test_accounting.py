"""Formulas and tables against numbers worked out by hand."""

import json
import math

import pytest

from workflow_scripts.accounting.formulas import break_even_reuse, pareto_front
from workflow_scripts.accounting.summary import SummaryError, adopted_record, read_records
from workflow_scripts.accounting.totals import sum_of
from workflow_scripts.stages.comparison import break_even, differences, with_lineage


def test_formulas() -> None:
    assert break_even_reuse(100.0, 30.0, 50.0) == 5.0
    assert break_even_reuse(100.0, 50.0, 50.0) is None
    assert break_even_reuse(100.0, 60.0, 50.0) is None


def test_pareto_front() -> None:
    points = {"cheap": (1.0, 1.0), "good": (3.0, 5.0), "dominated": (3.0, 4.0), "worse": (4.0, 5.0), "nan": (math.nan, 9.0)}
    assert pareto_front(points) == {"cheap", "good"}
    assert pareto_front({"twin": (1.0, 1.0), "other": (1.0, 1.0)}) == {"twin", "other"}
    assert pareto_front({"one": (1.0, 1.0)}) == {"one"}


def test_a_sum_with_an_unknown_member_is_unknown() -> None:
    assert sum_of([1.0, 2.0]) == 3.0
    assert sum_of([1.0, None]) is None
    assert sum_of([]) is None


def summary(name: str, teacher, student: float, split: str = "s") -> dict:
    return {
        "experiment_name": name,
        "roles": {
            "teacher": {"joules": teacher, "stages": int(name != "gold")},
            "student": {"kwh": student / 3.6e6, "joules": student, "stages": 1},
        },
        "energy": {"boundary": ["cpu"], "class": "modelled", "complete": True},
        "stages": {"student_train": {"provenance": {"cpu": "x"}, "devices": []}},
        "quality": {"split_sha256": split},
        "comparable": {"seed": 1},
        "lineage": None,
    }


def test_a_policy_costs_what_its_ancestor_cost() -> None:
    """DPO on a baseline policy can never be cheaper than that baseline."""
    dpo = summary("dpo", 700, 500) | {"lineage": {"total_energy_kwh": 870 / 3.6e6}}
    rows = break_even([summary("gold", None, 870), dpo], "gold")
    assert rows[0]["reuses"] is None
    assert with_lineage(dpo, 1.0) == 1.0 + 870 / 3.6e6
    assert with_lineage(dpo, None) is None


def test_break_even_names_never_and_unknown() -> None:
    rows = break_even(
        [summary("gold", None, 50), summary("kd", 100, 30), summary("sft", 100, 60), summary("dpo", None, 1)], "gold"
    )
    assert [(r["experiment"], r["reuses"]) for r in rows] == [("kd", pytest.approx(5.0)), ("sft", None), ("dpo", None)]
    assert rows[0]["verdict"] == "after 5.0 reuses"
    assert rows[1]["verdict"].startswith("never")
    assert rows[2]["verdict"].startswith("unknown")


def test_differing_evaluation_splits_are_named() -> None:
    assert differences([summary("a", 1, 1), summary("b", 1, 1)]) == []
    assert differences([summary("a", 1, 1), summary("b", 1, 1, split="t")]) == ["evaluation split differs: a: s; b: t"]


def test_trainings_that_ended_by_different_budgets_are_named() -> None:
    first, second = summary("a", 1, 1), summary("b", 1, 1)
    for each, ended in ((first, "token_budget"), (second, "energy_budget_kwh")):
        each["stages"] = {
            "old": {"role": "student", "lineage": "c", "metrics": {"ended_by": "max_epochs"}},
            "student_train": {"role": "student", "metrics": {"ended_by": ended}},
        }
    assert differences([first, second]) == ["end of the training differs: a: token_budget; b: energy_budget_kwh"]


def test_what_should_agree_and_does_not_is_named() -> None:
    other = summary("b", 1, 1) | {"comparable": {"seed": 2}}
    assert differences([summary("a", 1, 1), other]) == ["seed differs: a: 1; b: 2"]
    unknown = summary("b", 1, 1)
    unknown["energy"] = unknown["energy"] | {"complete": False}
    assert differences([summary("a", 1, 1), unknown]) == ["b: a stage has no energy figure, so it has no total"]


def test_a_record_of_another_schema_is_named(tmp_path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"schema": "energy-stage/9"}))
    plan = {"shared": {"prerun": str(path)}, "own": {}, "sharing": {}, "teacher_manifest": None}
    with pytest.raises(SummaryError, match="r.json: schema 'energy-stage/9', this program reads energy-stage/1"):
        read_records(plan)


def test_the_energy_of_an_adopted_data_set_is_its_record_or_unavailable(tmp_path) -> None:
    """Never the few joules of looking at it."""
    manifest, data = tmp_path / "a" / "b" / "manifest.json", tmp_path / "mine" / "data"
    manifest.parent.mkdir(parents=True)
    data.mkdir(parents=True)
    manifest.write_text(json.dumps({"path": str(data), "adopted": True}))
    adoption = {
        "stage_id": "t",
        "stage_name": "t",
        "shared_by": [],
        "energy": {"total": {}},
        "warnings": [],
        "total_energy_joules": 3,
        "cpu_energy_joules": 3,
        "carbon": {"grams": 0.1, "region": "CAN", "reason": None},
    }
    found = adopted_record(manifest, adoption)
    assert found["total_energy_joules"] is None and found["cpu_energy_joules"] is None
    assert found["carbon"] == {"grams": None, "region": "CAN", "reason": found["energy"]["total"]["reason"]}
    assert found["energy"]["total"]["reason"] == f"the data set at {data} was made elsewhere and no record lies beside it"
    (data.parent / "stages").mkdir()
    (data.parent / "stages" / "synthetic_generation.json").write_text(json.dumps({"total_energy_joules": 5000}))
    assert adopted_record(manifest, adoption)["total_energy_joules"] == 5000
