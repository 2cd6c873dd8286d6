"""Formulas and tables against numbers worked out by hand."""

import json
from pathlib import Path

import pytest

from tests.helpers.summaries import baseline, kd, measured, policy_cost, read, stage, summary
from workflow_scripts.accounting.fairness import differences, incomplete, quality_refusal
from workflow_scripts.accounting.load import Loaded
from workflow_scripts.accounting.model import SummaryStage, sum_of
from workflow_scripts.accounting.rows import ExperimentRow, stage_key, stage_row, users
from workflow_scripts.accounting.summary import SummaryPlan, adopted_record, ancestors, lineage, read_records
from workflow_scripts.artefact import ArtefactError
from workflow_scripts.report.boamps import _measure
from workflow_scripts.report.pages import answer_tables
from workflow_scripts.report.sentences import sentences
from workflow_scripts.stages.comparison import compare


def test_a_sum_with_an_unknown_member_is_unknown() -> None:
    assert sum_of([1.0, 2.0]) == 3.0
    assert sum_of([1.0, None]) is None
    assert sum_of([]) is None


def dpo(student: float, lineage: dict | None = None, teacher: float | None = 700.0) -> dict:
    stages = {"teacher_generation": stage(teacher, "teacher", "pairs"), "dpo_training": stage(student, "student", "dpo")}
    return summary("dpo", "dpo", stages, lineage=lineage)


def test_a_policy_costs_what_its_ancestor_cost() -> None:
    policy = read(dpo(500, policy_cost(870 / 3.6e6)))
    assert policy.method_energy is not None and policy.method_energy.value == pytest.approx(1200 + 870)
    assert read(dpo(500, policy_cost(870 / 3.6e6), teacher=None)).method_energy is None


def test_evaluations_inside_a_training_are_no_part_of_what_the_method_costs() -> None:
    trained = measured("gold", 1, [(400, 5.0), (1000, 4.0)])
    trained["evaluations_on_the_way"]["joules"] = 100.0
    found = read(trained)
    assert found.method_energy is not None and found.method_energy.value == pytest.approx(900)
    row = ExperimentRow.of(found, "gold", users([found]))
    assert (row.method_kwh, row.column("beside_kwh")) == (pytest.approx(900 / 3.6e6), pytest.approx(100 / 3.6e6))
    assert list(ancestors(found, ["student_train"])) == ["student_train_of_gold_seed1"], "opd trains as its policy was trained"
    assert incomplete([found]) == []
    trained["evaluations_on_the_way"] |= {"joules": None, "reason": "no trace"}
    (said,) = incomplete([read(trained)])
    assert said.endswith("evaluations inside its training are not known (no trace): they are in what the method costs")
    cost = lineage(found)
    assert cost.student_kwh == cost.total_energy_kwh == pytest.approx(900 / 3.6e6)


def test_the_counter_of_a_grace_module_has_a_column_and_a_method() -> None:
    record = SummaryStage.model_validate(stage(900, "student", "train"))
    counter = record.energy.cpu.model_copy(update={"joules": 900.0, "method": "NVML module counter"})
    total = record.energy.total.model_copy(update={"boundary": ["module"]})
    record = record.model_copy(update={"energy": record.energy.model_copy(update={"module": counter, "total": total})})
    row = stage_row("x", "train", record, {stage_key("train", record): ["x"]})
    assert row["module_j"] == 900.0 and row["boundary"] == "module"
    measured_by = _measure([record])
    assert measured_by["measurementMethod"] == measured_by["gpuTrackingMode"] == "NVML module counter"


def followed(name: str, seed: int, share: float, teacher: float | None = None) -> dict:
    """A run whose answers follow a share of 40 instructions."""
    each = measured(name, seed, [(500, 5.0), (1000, 4.0)], teacher)
    each["quality"]["rows"]["instructions"] = [int(number < share * 40) for number in range(40)]
    metric = {"value": share, "higher_is_better": True, "examples": 40, "shots": 0, "version": 1}
    each["quality"]["tasks"] = {"metrics": {"instructions/followed": metric}}
    return each


@pytest.mark.parametrize(("share", "clear"), [(0.9, True), (0.25, False)])
def test_a_second_quality_stands_beside_the_verdict_with_its_interval_over_rows_and_seeds(share: float, clear: bool) -> None:
    shares = [share, share, share + 0.025]
    runs = [followed("gold", seed, each) for seed, each in enumerate((0.2, 0.225, 0.2))]
    runs += [followed("kd", seed, each, 600) for seed, each in enumerate(shares)]
    made, _ = compare(Loaded([read(each) for each in runs]), "cross_entropy", ["gold"])
    (found,) = (row for row in made.qualities if row.quality == "instructions/followed")
    assert found.better == pytest.approx(sum(shares) / 3 - 0.625 / 3) and found.clear == clear
    assert found.better_low is not None and found.better_high is not None
    assert found.better_low < found.better < found.better_high and (found.better_low > 0) == clear
    chances = {row.group: row.pareto_of_instructions for row in made.groups}
    assert chances["gold"] is not None and chances["gold"] > 0.95, "it costs less"
    assert chances["kd"] is not None and (chances["kd"] > 0.98) == clear
    assert "with instructions/followed" in answer_tables(made)[1].head
    said = sentences(made)[-1][0]
    assert ("kd follows more" if clear else "not told apart") in said and said.startswith(
        "On what no method trains on, gold follows 20.8 %"
    )


def test_instructions_on_other_questions_or_of_other_lengths_are_not_compared() -> None:
    runs = [read(followed("gold", 1, 0.2)), read(followed("kd", 1, 0.3, 600))]
    assert quality_refusal(runs, "instructions/followed") is None
    other = followed("kd", 1, 0.3, 600)
    other["quality"]["split_sha256"] = "t" * 64
    assert "the evaluation split differs" in str(quality_refusal([runs[0], read(other)], "instructions/followed"))
    longer = followed("kd", 1, 0.3, 600)
    longer["quality"]["tasks"]["metrics"]["instructions/followed"]["version"] = "1, at most 99 new tokens"
    assert "was asked differently" in str(quality_refusal([runs[0], read(longer)], "instructions/followed"))


def named(*summaries: dict) -> list[str]:
    return [difference.text for difference in differences([read(each) for each in summaries])]


def test_differing_evaluation_splits_are_named() -> None:
    split = {"quality": {"split_sha256": "t"}}
    first = baseline("a", quality={"split_sha256": "s"})
    assert named(first, baseline("b", quality={"split_sha256": "s"})) == []
    assert named(first, baseline("b", **split)) == ["evaluation split differs: a: s; b: t"]


def test_trainings_that_ended_by_different_budgets_are_named() -> None:
    first, second = baseline("a"), baseline("b")
    for each, ended in ((first, "token_budget"), (second, "energy_budget_kwh")):
        old = stage(1.0, "student", "old", metrics={"ended_by": "max_epochs"}) | {"lineage": "c"}
        each["stages"] = {"old": old, "student_train": stage(1.0, "student", "new", metrics={"ended_by": ended})}
    assert named(first, second) == ["end of the training differs: a: token_budget; b: energy_budget_kwh"]


def test_what_should_agree_and_does_not_is_named() -> None:
    assert named(baseline("a"), baseline("b", comparable={"seed": 2})) == ["seed differs: a: 1; b: 2"]
    unknown = read(kd("b", None, 1.0))
    assert incomplete([read(baseline("a")), unknown]) == ["b: a stage has no energy figure, so it has no total"]


def test_a_record_of_another_schema_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"schema": "energy-stage/9"}))
    nothing = {"experiment": "e", "pipeline": "kd", "training_stage": "t", "own": {}, "evaluation": "e", "output_dir": "o"}
    plan = SummaryPlan.model_validate({**nothing, "shared": {"prerun": str(path)}, "prerun": "p"})
    with pytest.raises(ArtefactError, match="r.json: schema 'energy-stage/9', this program reads energy-stage/1"):
        read_records(plan)


def test_the_energy_of_an_adopted_data_set_is_its_record_or_unavailable(tmp_path: Path) -> None:
    """Never the few joules of looking at it."""
    manifest, data = tmp_path / "a" / "b" / "manifest.json", tmp_path / "mine" / "data"
    manifest.parent.mkdir(parents=True)
    data.mkdir(parents=True)
    manifest.write_text(json.dumps({"path": str(data), "adopted": True}))
    adoption = SummaryStage.model_validate(stage(3.0, "teacher", "t"))
    adoption.carbon.grams, adoption.carbon.region = 0.1, "CAN"
    found = adopted_record(manifest, adoption)
    assert found.total_energy_joules is None and found.cpu_energy_joules is None and found.energy.cpu.joules is None
    assert (found.spent, found.total_energy_kwh, found.energy.total.uncertainty_pct) == (None, None, None)
    reason = f"the data set at {data} was made elsewhere and no record lies beside it"
    assert (found.carbon.grams, found.carbon.region, found.carbon.reason) == (None, "CAN", reason)
    assert found.energy.total.reason == reason
    (data.parent / "stages").mkdir()
    (data.parent / "stages" / "synthetic_generation.json").write_text(json.dumps(stage(5000.0, "teacher", "u")))
    assert adopted_record(manifest, adoption).total_energy_joules == 5000


def test_two_hosts_err_on_their_own_and_one_host_does_not_wherever_it_is_shown() -> None:
    """Two stages of 100 J +/- 5 % by RAPL: sqrt(5^2 + 5^2) J on two hosts, 5 + 5 J on one."""
    for hosts, expected in (("hi", 50**0.5), ("hh", 10.0)):
        stages = {
            "preprocess": stage(100.0, "data", "d", host=hosts[0]),
            "student_train": stage(100.0, "student", "s", host=hosts[1]),
        }
        content = summary("gold", "baseline", stages, energy={"uncertainty_j": 10.0, "uncertainty_pct": 5.0})
        found = read(content)
        (row,) = compare(Loaded([found]), "cross_entropy", [])[0].experiments
        assert found.energy.uncertainty_j == pytest.approx(expected), "computed, not what an older file says"
        assert found.energy.uncertainty_pct == pytest.approx(expected / 2)
        assert (row.total_uncertainty_kwh or 0) * 3.6e6 == pytest.approx(expected)


def test_attempts_on_two_hosts_err_on_their_own() -> None:
    record = stage(200.0, "student", "s")
    first = record["attempts"][0] | {"joules": {"cpu": 100.0}}
    record["attempts"] = [first, first | {"id": "2", "host": "i", "hosts": ["i"]}]
    made = SummaryStage.model_validate(record)
    assert made.energy.total.uncertainty_j == pytest.approx(50**0.5)
    assert made.spent is not None and made.spent.errors == {("RAPL", "h"): 5.0, ("RAPL", "i"): 5.0}


def test_a_counter_that_did_not_move_adds_nothing_to_the_uncertainty() -> None:
    parts = [("cpu", "RAPL", 5.0, 100.0), ("dram", "RAPL", None, 0.0)]
    made = SummaryStage.model_validate(stage(100.0, "student", "s", parts=parts))
    assert made.energy.total.uncertainty_j == pytest.approx(5.0)
