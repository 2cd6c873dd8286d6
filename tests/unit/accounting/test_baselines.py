"""Several baselines: each method is compared with that of the student that it starts from."""

from __future__ import annotations

import pytest

from tests.helpers.summaries import course, measured, policy_cost
from tests.unit.accounting.test_comparison import answers, campaign, compared
from workflow_scripts.accounting.rows import Comparison
from workflow_scripts.report.sentences import sentences


def test_each_method_is_compared_with_the_baseline_of_its_own_student() -> None:
    """Of a student that costs ten times as much the saving is the same 40 %; a third student has no baseline."""
    found = campaign()
    for student, times in (("large", 10.0), ("third", 1.0)):
        for seed in range(3):
            runs = [measured(f"{student}_kd", seed, course(600.0 * times, 3.0), teacher=800.0)]
            runs += [measured(f"{student}_gold", seed, course(1000.0 * times, 3.0))] if student == "large" else []
            found += [run | {"comparable": run["comparable"] | {"starting model": student}} for run in runs]
    made = compared(*found, baseline="gold_seed0 large_gold_seed0")
    twice = compared(*found, baseline="gold_seed0 gold_seed1 kd_seed0")
    assert twice["baseline"] == "gold" and "baselines gold and kd are of one student" in " ".join(twice["warnings"])
    assert [row["experiment"] for row in twice["answers"]] == ["kd", "large_kd", "large_gold", "third_kd"]
    rows = {row["experiment"]: row for row in made["answers"]}
    assert {name: row["baseline"] for name, row in rows.items()} == {"kd": "gold", "large_kd": "large_gold", "third_kd": "gold"}
    assert [rows[name]["saved"] for name in ("kd", "large_kd")] == pytest.approx([0.4, 0.4], rel=0.03)
    assert [each["what"] for each in rows["third_kd"]["refusals"]] == ["starting model"] * 3
    assert made["baseline"] == "gold, large_gold" and {row["baseline"] for row in made["qualities"]} <= {"gold", "large_gold"}
    text = "".join(sentence for sentence, _ in sentences(Comparison.model_validate(made)))
    assert "large_kd pays" in text and "third_kd is not compared with gold: third_kd_seed0 starts from third" in text


@pytest.mark.parametrize(("policy_s", "against"), [("base", "gold_seed0"), ("other", "other_gold_seed0"), ("none", None)])
def test_a_policy_s_method_is_compared_with_the_baseline_of_its_first_student(policy_s: str, against: str | None) -> None:
    """Whatever the policy is called, and whether it is a baseline itself or not."""
    golds = [measured(name, 0, course(1000.0, 3.0)) for name in ("gold", "other_gold")]
    dpo = measured("dpo", 0, course(900.0, 3.0), teacher=100.0)
    dpo |= {"lineage": policy_cost(800 / 3.6e6), "comparable": dpo["comparable"] | {"starting model": "sft"}}
    for run, student in ((golds[0], "base"), (golds[1], "other"), (dpo, policy_s)):
        run["comparable"] = run["comparable"] | {"student": student}
    row = answers(*golds, dpo, baseline="gold_seed0 other_gold_seed0")["dpo_seed0"]
    refused = [each["value"] for each in row["refusals"] if each["what"] == "starting model"]
    assert (row["baseline"], refused) == ((against, []) if against else ("gold_seed0", ["none"]))


def test_a_policy_s_method_that_does_not_say_its_student_is_named_where_there_are_several() -> None:
    """As summaries of earlier versions are: by one baseline they are compared as before."""
    golds = [measured(name, 0, course(1000.0, 3.0)) for name in ("gold", "other_gold")]
    for run, student in zip(golds, ("base", "other"), strict=True):
        run["comparable"] = run["comparable"] | {"student": student}
    dpo = measured("dpo", 0, course(900.0, 3.0), teacher=100.0) | {"lineage": policy_cost(800 / 3.6e6)}
    said = [
        " ".join(compared(*golds, dpo, baseline=names)["warnings"]) for names in ("gold_seed0 other_gold_seed0", "gold_seed0")
    ]
    assert ["make them again: dpo_seed0" in text for text in said] == [True, False]
