"""What a method is charged with in a verdict, and trainings whose energies are not of one kind."""

from __future__ import annotations

import pytest

from tests.helpers.summaries import course, kd, measured, read, served, stage, summary
from tests.unit.accounting.test_comparison import answers, campaign, compared
from workflow_scripts.accounting.rows import Comparison
from workflow_scripts.accounting.summary import lineage
from workflow_scripts.energy.uncertainty import KWH


def test_what_lost_attempts_have_spent_is_in_no_verdict() -> None:
    """Each baseline was killed once, before it had saved anything: 400 J that a verdict on kd is not about."""
    runs = campaign()
    for run in runs[::2]:
        whole = run["stages"]["student_train"]["total_energy_joules"]
        lost = {"useful_j": whole, "wasted_j": 400.0}
        run["stages"]["student_train"] = stage(whole + 400, "student", f"train {run['experiment_name']}", **lost)
    row, plain = (answers(*each, baseline="gold_seed0")["kd"] for each in (runs, campaign()))
    for name in ("reuses", "baseline_kwh", "equal_tokens"):
        assert row[name] == pytest.approx(plain[name])
    made = compared(*runs, baseline="gold_seed0")["experiments"]
    gold = next(each for each in made if each["experiment"] == "gold_seed0")
    assert gold["total_kwh"] - gold["method_kwh"] == pytest.approx(400 / KWH), "it is in the total"


def test_another_power_model_is_another_meter() -> None:
    runs = campaign()
    model = {"cpu_model": "x", "cpu_tdp_source": "fallback", "sockets": 1, "cores": 2, "threads": 2, "memory_gb": 24.0}
    model |= {"dram_watts": 20.0, "dram_watts_source": "codecarbon", "virtual": True}
    for run in runs:
        watts = 65.0 if run["pipeline"] == "kd" else 8.0
        record = run["stages"]["student_train"]
        parts = [("cpu", "CodeCarbon CPU model", 5.0, record["total_energy_joules"])]
        changed = stage(record["total_energy_joules"], "student", record["provenance"]["fingerprint"], parts=parts)
        run["stages"]["student_train"] = changed | {"power_models": [model | {"cpu_tdp_watts": watts}]}
    row = answers(*runs, baseline="gold_seed0")["kd"]
    (found,) = (refusal for refusal in row["refusals"] if refusal["what"] == "meter")
    assert row["kind"] == "not comparable" and "kd: TDP 65 W" in found["value"]


def test_jobs_that_are_charged_for_other_parts_of_their_hosts_are_another_meter() -> None:
    runs = campaign()
    for run in runs:
        cpu = {"job_s": 9.0, "foreign_s": 0.0, "steal_s": 0.0, "foreign_pct": 0.0, "host_cpus": 64}
        run["stages"]["student_train"]["cpu"] = cpu | {"job_cpus": 16.0 if run["pipeline"] == "kd" else 8.0}
    (found,) = answers(*runs, baseline="gold_seed0")["kd"]["refusals"]
    assert found["what"] == "meter"
    assert found["value"] == "kd: 16 of 64 CPUs, cpu of the host; gold: 8 of 64 CPUs, cpu of the host"


@pytest.mark.parametrize("shared", [True, False])
def test_runs_that_start_from_one_training_of_the_policy_are_one_run(shared: bool) -> None:
    runs = [measured("gold", seed, course(1000.0 + seed, 4.0)) for seed in range(3)]
    for seed in range(3):
        opd = measured("opd", seed, course(300.0 + seed, 4.0), teacher=100.0)
        policy = stage(200.0, "student", f"policy {0 if shared else seed}") | {"lineage": "policy"}
        cost = {"policy": "policy", "student_kwh": 200 / KWH, "teacher_kwh": None, "total_energy_kwh": 200 / KWH}
        runs.append(opd | {"lineage": cost, "stages": opd["stages"] | {"policy_train": policy}})
    row = answers(*runs, baseline="gold_seed0")["opd"]
    assert (row["kind"], row["cause"], row["runs"]) == (("undetermined", "one policy", 1) if shared else ("pays", None, 3))


def test_hardware_of_the_policy_s_training_is_compared() -> None:
    runs = campaign()
    for run in runs[1::2]:
        policy = stage(1.0, "student", f"policy of {run['experiment_name']}") | {"lineage": "p"}
        policy["provenance"]["cpu"] = "another"
        run["stages"]["policy_train"] = policy
        run["lineage"] = {"policy": "p", "student_kwh": 1 / KWH, "teacher_kwh": None, "total_energy_kwh": 1 / KWH}
    assert "hardware" in {each["what"] for each in answers(*runs, baseline="gold_seed0")["kd"]["refusals"]}


def test_a_policy_is_charged_with_the_part_of_its_cache_that_it_read() -> None:
    policy = kd("policy", 1000.0, 500.0)
    for name, examples in (("logit_caching", 100), ("student_train", 63)):
        policy["stages"][name]["work"]["examples"] = examples
    found = lineage(read(policy))
    assert found.teacher_kwh == pytest.approx(630 / KWH) and found.total_energy_kwh == pytest.approx(1130 / KWH)


def test_a_target_that_was_passed_before_the_first_evaluation_is_no_target_that_is_not_reached() -> None:
    found = [answers(*campaign(), baseline="gold_seed0", target=at)["kd"]["cause"] for at in (6.0, 4.5, 3.9)]
    assert found == ["target passed", None, "target not reached"]


def test_serving_costs_within_their_spread_are_no_never() -> None:
    """Students of 11.9 and 12.1 J/token against a teacher of 11.99: the interval holds both signs."""
    runs = campaign(seeds=2)
    for run, served_at in zip(runs, (11.9, 12.1, 11.9, 12.1), strict=True):
        run["references"]["student"]["model"] = "small"
        run["deployment"] = {"teacher": served(11.99), "model": served(served_at)}
    (row,) = (each for each in compared(*runs, target=4.5)["repayment"] if each["experiment"] == "kd")
    assert (row["why_not"], row["tokens"]) == ("undetermined", None) and row["high"] is None


def test_an_evaluation_of_a_lost_attempt_is_not_taken_off_twice() -> None:
    """An opd round of 300 J, half of them lost: of the 60 J of its evaluations, 30 are in what survived."""
    phases = {name: {"joules": joules, "seconds": 1.0, "tokens": 0} for name, joules in (("work", 240.0), ("evaluate", 60.0))}
    stages = {
        "rollout": stage(10.0, "student", "r1"),
        "logit_caching": stage(100.0, "teacher", "c1"),
        "student_train_round1": stage(300.0, "student", "t1", phases=phases, useful_j=150.0, wasted_j=150.0),
        "student_train": stage(200.0, "student", "t2"),
    }
    found = read(summary("opd", "opd", stages))
    assert found.training_energy.value == pytest.approx(10 + 150 - 30 + 200)
    assert [record.provenance.fingerprint for record in found.trainings] == ["t1", "t2"]


def test_tokens_and_seconds_of_an_opd_experiment_are_those_of_all_its_rounds() -> None:
    """As its joules are: 60 and 40 tokens, 10 s and 3 s of CPU in each of two rounds; half of the joules are above idle."""
    cpu = {"job_s": 3.0, "foreign_s": 0.0, "steal_s": 0.0, "foreign_pct": 0.0, "host_cpus": 2}
    rounds = {"student_train_round1": (60, 400.0), "student_train": (40, 200.0)}
    stages = {
        name: stage(joules, "student", name, loss=tokens, cpu=cpu, above_idle_j=joules / 2)
        for name, (tokens, joules) in rounds.items()
    }
    cache = {"logit_caching": stage(100.0, "teacher", "c1")}
    (row,) = compared(summary("opd", "opd", cache | stages), baseline=None)["experiments"]
    assert (row["training_tokens"], row["training_s"], row["training_cpu_s"], row["training_idle_pct"]) == (
        100,
        20.0,
        6.0,
        50.0,
    )
    assert read(summary("opd", "opd", cache | stages)).overall_joules_per_token == pytest.approx(7.0)


def test_every_row_of_several_undetermined_methods_can_be_read_back() -> None:
    """Of one seed each; two equal evaluations say how well work repeats."""
    runs = [*campaign(seeds=1), *(measured(name, 0, course(700.0, 4.0), teacher=100.0) for name in ("kd2", "kd3"))]
    for number, run in enumerate(runs):
        evaluation = stage(100.0 + number, "evaluation", f"evaluation {number}")
        evaluation["work"]["input"] = 1000
        run["stages"]["evaluation"] = evaluation
    made = Comparison.model_validate(compared(*runs, baseline="gold_seed0"))
    assert [row.kind for row in made.answers] == ["undetermined"] * 3 and not any(row.work_apart for row in made.answers)
    assert all(row.seeds_needed for row in made.answers)
