"""Comparisons worked out by hand: costs, sharing, seeds, refusals, bad input."""

from __future__ import annotations

import json
import math
from typing import get_args

import pytest

from tests.helpers.summaries import baseline, course, kd, measured, policy_cost, read, served, stage, summary, write
from workflow_scripts.accounting import fairness
from workflow_scripts.accounting.groups import averages, group
from workflow_scripts.accounting.load import Loaded
from workflow_scripts.accounting.rows import ExperimentRow, Properties, users
from workflow_scripts.accounting.verdicts import seeds_needed
from workflow_scripts.energy.neighbours import ANOTHER_METER
from workflow_scripts.stages.comparison import compare, main


def compared(*summaries: dict, baseline: str | None = "gold", quality: str = "cross_entropy", target=None) -> dict:
    names = baseline.split() if baseline else []
    return compare(Loaded([read(s) for s in summaries]), quality, names, target)[0].content()


def answers(*summaries: dict, **options) -> dict[str, dict]:
    return {row["experiment"]: row for row in compared(*summaries, **options)["answers"]}


def campaign(seeds: int = 3, share: float = 0.6, **more) -> list[dict]:
    """A baseline and kd, whose trainings cost `share` of the baseline's to the same loss; they repeat to about a hundredth."""
    found = []
    for seed in range(seeds):
        off = 1 + 0.01 * (seed - (seeds - 1) / 2)
        found.append(measured("gold", seed, course(1000.0 * off, 4.0)))
        found.append(measured("kd", seed, course(1000.0 * share * (2 - off), 4.0), teacher=800.0, **more))
    return found


def test_a_campaign_of_three_seeds_has_intervals() -> None:
    """N* = 800 / (1000 - 600) = 2 where both reach the loss; at equal tokens, too."""
    row = answers(*campaign(), baseline="gold_seed0")["kd"]
    assert (row["kind"], row["runs"], row["baseline_runs"]) == ("pays", 3, 3)
    assert row["reuses"] == pytest.approx(2, rel=0.02) and row["reuses_low"] < 2 < row["reuses_high"] < 2.5
    assert row["equal_tokens"] == pytest.approx(2, rel=0.01) and row["equal_tokens_low"] < 2 < row["equal_tokens_high"]
    assert row["teacher_kwh"] * 3.6e6 == pytest.approx(800) and row["saved"] == pytest.approx(0.4, rel=0.02)
    assert answers(*campaign(share=1.4), baseline="gold_seed0")["kd"]["kind"] == "never"


def test_one_run_has_a_difference_and_no_verdict() -> None:
    row = answers(*campaign(seeds=1), baseline="gold_seed0")["kd_seed0"]
    assert (row["kind"], row["cause"], row["repeatability"]) == ("undetermined", "one run", None)
    assert row["saved"] == pytest.approx(0.4, rel=0.02) and row["reuses_low"] is None


def test_evaluations_of_a_loss_of_its_own_are_no_curve_and_the_remedy_is_no_more_of_them() -> None:
    trained = measured("dpo", 0, course(900.0, 4.0), teacher=100.0)
    asked, own = trained["stages"].values()
    trained["stages"] = {"teacher_generation": asked, "dpo_training": own}
    row = answers(measured("gold", 0, course(1000.0, 4.0)), trained | {"pipeline": "dpo"}, baseline="gold_seed0")["dpo_seed0"]
    assert (row["kind"], row["cause"]) == ("undetermined", "own loss")


def test_equal_evaluations_say_how_well_work_repeats() -> None:
    """340, 315 and 475 J: s = 0.23 of the mean."""
    runs = [baseline(), kd("kd", 600, 700), kd("sft", 600, 700, cache="other")]
    for content, joules in zip(runs, (340.0, 315.0, 475.0), strict=True):
        record = stage(joules, "evaluation", f"evaluation of {content['experiment_name']}")
        content["stages"]["evaluation"] = record | {"work": record["work"] | {"input": 50}}
    row = answers(*runs)["kd"]
    assert row["repeatability"] == pytest.approx(0.229, abs=0.001) and row["kind"] == "undetermined"
    assert (row["equal_tokens"], row["equal_tokens_low"]) == (pytest.approx(2), None), (
        "the published formula, without an interval"
    )
    assert row["seeds_needed"] == seeds_needed(0.3, row["repeatability"])


def spoilt(kind: str) -> list[dict]:
    runs = campaign()
    record = runs[1]["stages"]["student_train"]
    if kind == "cpu share":
        record["energy"]["cpu"]["share"] = 0.57
    elif kind == "another meter":
        record["warnings"] = [f"1 {ANOTHER_METER} (s)"]
    elif kind == "gpu processes":
        record["devices"] = [{"uuid": "u", "other_processes": [7]}]
    elif kind == "uncertainty":
        record["energy"]["cpu"]["uncertainty_pct"] = None
    elif kind == "meter":
        record["energy"]["cpu"]["scope"] = "job"
    elif kind == "hardware":
        record["provenance"]["cpu_count"] = 4
    elif kind == "starting model":
        for number, each in enumerate(runs):
            each["comparable"]["starting model"] = "a/base" if number % 2 == 0 else "a/base-SFT"
    elif kind == "evaluation split":
        runs[1]["quality"]["split_sha256"] = "z" * 64
    elif kind == "boundary":
        both = [("cpu", "RAPL", 5.0, 500), ("gpu", "NVML total energy counter", 5.0, 100)]
        runs[1]["stages"]["student_train"] = stage(600, "student", "train", parts=both)
    elif kind == "energy":
        record["status"] = "partial"
    return runs


@pytest.mark.parametrize("kind", (*get_args(Properties), "cpu share", "another meter", "gpu processes"))
def test_what_is_not_comparable_is_refused_with_the_stage(kind: str) -> None:
    row = answers(*spoilt(kind), baseline="gold_seed0")["kd"]
    assert (row["kind"], row["at_equal"]) == ("not comparable", None)
    found = {refusal["what"]: refusal for refusal in row["refusals"]}
    assert kind in found
    if kind in ("cpu share", "another meter", "gpu processes", "uncertainty"):
        assert (found[kind]["experiment"], found[kind]["stage"]) == ("kd_seed0", "student_train")


def test_other_work_on_the_host_is_seen_by_its_cpu_seconds() -> None:
    runs = campaign()
    seconds = {"job_s": 57.0, "foreign_s": 43.0, "steal_s": 0.0, "foreign_pct": 21.5, "host_cpus": 2}
    runs[0]["stages"]["student_train"]["cpu"] = seconds
    (found,) = answers(*runs, baseline="gold_seed0")["kd"]["refusals"]
    assert (found["what"], found["experiment"], found["value"]) == ("cpu share", "gold_seed0", "0.57")


def test_joules_to_a_quality_are_those_of_the_work_where_a_record_tells_them_apart() -> None:
    """100 J of start-up and 50 J of saves in each training: to a quality they do not count, in whole trainings they do.

    Where one record does not tell them apart, they are in all.
    """
    runs = campaign()
    for content in runs:
        for point in content["evaluations_on_the_way"]["points"]:
            point["work_joules"] = max(0.0, point["training_joules"] - 100)
        record = content["stages"]["student_train"]
        work = record["total_energy_joules"] - 150
        for name, joules in (("start", 100.0), ("work", work), ("save", 50.0)):
            record.setdefault("phases", {})[name] = {"joules": joules, "seconds": 1.0, "tokens": 0}
    row = answers(*runs, baseline="gold_seed0")["kd"]
    plain = answers(*campaign(), baseline="gold_seed0")["kd"]
    assert row["work_apart"] and not plain["work_apart"]
    assert (plain["method_kwh"] - row["method_kwh"]) * 3.6e6 == pytest.approx(150, rel=0.1)
    assert row["equal_tokens"] == pytest.approx(plain["equal_tokens"])
    runs[0]["stages"]["student_train"]["phases"] = {}
    mixed = answers(*runs, baseline="gold_seed0")["kd"]
    assert not mixed["work_apart"] and mixed["method_kwh"] == pytest.approx(plain["method_kwh"])


def test_a_merge_of_half_a_second_may_share_its_host() -> None:
    runs = campaign()
    for run in runs[1::2]:
        merge = stage(1.0, "teacher", "merge of kd")
        merge["energy"]["cpu"]["share"] = 0.3
        run["stages"]["merge_logits"] = merge
    assert answers(*runs, baseline="gold_seed0")["kd"]["kind"] == "pays"


def test_a_second_energy_model_that_says_otherwise_leaves_it_undetermined() -> None:
    """CPU 40 % and memory 60 % of each training; the other model gives the method's memory three times as much."""
    runs = campaign()
    for run in runs:
        for record in run["stages"].values():
            joules = record["total_energy_joules"]
            parts = [("cpu", "CodeCarbon cpu_load", 1.0, 0.4 * joules), ("dram", "CodeCarbon RAM model", 1.0, 0.6 * joules)]
            changed = stage(joules, record["role"], record["provenance"]["fingerprint"], parts=parts)
            own = record["role"] == "student" and run["pipeline"] == "kd"
            for name, _, _, part in parts:
                changed["energy"][name]["crosscheck"] = part * (2 if own else 1)
            record |= {key: changed[key] for key in ("energy", "attempts")}
    row = answers(*runs, baseline="gold_seed0")["kd"]
    assert (row["kind"], row["cause"], row["scenarios"]["second energy model"]) == ("undetermined", "models disagree", "never")
    assert {f"CodeCarbon {part} on h {end}" for part in ("cpu_load", "RAM") for end in ("+1", "-1")} <= set(row["scenarios"])


def test_the_share_of_a_cache_that_was_used_is_what_it_costs() -> None:
    runs = campaign()
    for run in runs[1::2]:
        for name, examples in (("logit_caching", 100), ("student_train", 63)):
            run["stages"][name]["work"]["examples"] = examples
    made = compared(*runs, baseline="gold_seed0")
    assert made["answers"][0]["teacher_used"] == 0.63
    assert made["answers"][0]["teacher_kwh"] * 3.6e6 == pytest.approx(0.63 * 800)
    kd_row = next(row for row in made["groups"] if row["group"] == "kd")
    assert kd_row["method_kwh_mean"] * 3.6e6 == pytest.approx(0.63 * 800 + 600)


def test_repayment_needs_a_quality_and_pools_the_students_of_an_architecture() -> None:
    """(800 + 600) J / (12 - 2) J per token = 140 tokens; 1.9 and 2.1 are one architecture's noise."""
    runs = campaign(seeds=2)
    for run, served_at in zip(runs, (1.9, 2.1, 1.9, 2.1), strict=True):
        run["references"]["student"]["model"] = "small"
        run["deployment"] = {"teacher": served(12.0), "model": served(served_at)}
    rows = {row["experiment"]: row for row in compared(*runs, baseline="gold_seed0", target=4.5)["repayment"]}
    assert rows["kd"]["tokens"] == pytest.approx(140) and rows["kd"]["pooled"] == 4
    assert rows["kd"]["low"] < 140 < rows["kd"]["high"]
    assert {row["why_not"] for row in compared(*runs)["repayment"]} == {"no target"}
    assert {row["why_not"] for row in compared(*runs, target=3.0)["repayment"]} == {"target not reached"}
    for run in runs:
        run["deployment"]["teacher"] |= {"hardware": "another CPU"}
    assert {row["why_not"] for row in compared(*runs, target=4.5)["repayment"]} == {"hardware"}


def test_the_front_is_a_chance_over_rows_and_seeds() -> None:
    runs = campaign()
    for seed in range(3):
        runs.append(measured("worse", seed, course(1500.0 + seed, 4.5), teacher=900.0))
    made = compared(*runs, baseline="gold_seed0")
    chances = {row["group"]: row["pareto_probability"] for row in made["groups"]}
    assert chances["gold"] > 0.9 and chances["worse"] == 0
    alone = compared(*campaign(seeds=1), baseline="gold_seed0")["groups"]
    assert {row["pareto_probability"] for row in alone} == {None}, "one run says nothing of seeds"


def test_one_point_is_no_front_and_no_quality_is_no_verdict() -> None:
    comparison = compared(baseline(), kd("old", 600, 700, quality=None, references={}))
    assert comparison["pareto_refused"] == "a front needs two methods that are comparable, there is 1"
    (row,) = comparison["answers"]
    assert (row["kind"], row["equal_tokens"]) == ("not comparable", None), "its split is not known"


def test_a_tasks_metric_is_the_quality_and_more_of_it_is_better() -> None:
    runs = [baseline("gold", quality=judged(0.25)), kd("good", 100, 1000, quality=judged(0.5))]
    made = compared(*runs, quality="arc/acc")
    assert [row["arc/acc"] for row in made["experiments"]] == [0.25, 0.5]
    (row,) = made["answers"]
    assert (row["final"], row["baseline_final"], row["better"]) == (0.5, 0.25, 0.25)
    errors = [
        run | {"quality": judged(run["quality"]["tasks"]["metrics"]["arc/acc"]["value"], higher_is_better=False)}
        for run in runs
    ]
    assert compared(*errors, quality="arc/acc")["answers"][0]["better"] == -0.25, "an error rate: less is better"


def differing(*summaries: dict) -> list[str]:
    return [difference.text for difference in fairness.differences([read(s) for s in summaries])]


def run(folder, paths: list[str], *options: str) -> tuple[int, dict]:
    out = folder / "out" / "comparison.json"
    code = main(["--summary", *paths, "--baseline", "gold", "--out", str(out), *options])
    return code, json.loads(out.read_text()) if out.is_file() else {}


def test_a_shared_teacher_is_charged_once_and_to_each_its_part() -> None:
    students = [kd(f"kd{i}", 600, 100.0 * i, seedless_fingerprint=f"lr {i}") for i in (1, 2, 3)]
    comparison = compared(baseline(), *students)
    assert comparison["campaign_kwh"] * 3.6e6 == pytest.approx(1000 + 600 + 100 + 200 + 300)
    rows = comparison["experiments"]
    assert [row["teacher_users"] for row in rows] == [None, 3, 3, 3]
    assert [row["teacher_share_kwh"] and row["teacher_share_kwh"] * 3.6e6 for row in rows] == [
        None,
        *[pytest.approx(200)] * 3,
    ]
    assert [row["charged_kwh"] * 3.6e6 for row in rows] == pytest.approx([1000, 300, 400, 500])
    assert [row["total_kwh"] * 3.6e6 for row in rows] == pytest.approx([1000, 700, 800, 900])
    assert comparison["campaign"]["shared_stages"] == 1


def test_a_starting_policy_is_charged_to_both_who_use_it() -> None:
    gold = baseline(student=800)
    policy = gold["stages"]["student_train"] | {"lineage": "gold"}
    stages = {"teacher_generation": stage(300, "teacher", "pairs"), "dpo_training": stage(200, "student", "dpo")}
    dpo = summary("dpo", "dpo", stages | {"student_train": policy}, lineage=policy_cost(800 / 3.6e6))
    comparison = compared(gold, dpo)
    assert comparison["campaign_kwh"] * 3.6e6 == pytest.approx(800 + 300 + 200)
    assert [row["charged_kwh"] * 3.6e6 for row in comparison["experiments"]] == pytest.approx([400, 900])
    assert comparison["answers"][0]["equal_tokens_saved"] == pytest.approx(-0.25), (
        "200 of its own and 800 before it are no saving"
    )
    assert comparison["groups"][1]["method_kwh_mean"] * 3.6e6 == pytest.approx(300 + 200 + 800)


def seeds(*energies: float, entropies=None) -> list[dict]:
    return [
        kd(
            f"kd_seed{i}",
            600,
            energy,
            comparable={"seed": i},
            seedless_fingerprint="kd",
            quality={"split_sha256": "s" * 64, "teacher": "t", "cross_entropy": (entropies or energies)[i - 1]},
        )
        for i, energy in enumerate(energies, 1)
    ]


def test_seeds_become_mean_and_sample_deviation() -> None:
    """1, 2, 4: mean 7/3, sample standard deviation sqrt(7/3)."""
    summaries = seeds(100.0, 100.0, 100.0, entropies=[1.0, 2.0, 4.0])
    read_back = [read(s) for s in summaries]
    groups = group(read_back)
    assert [(g.name, len(g.runs)) for g in groups] == [("kd", 3)]
    table = [ExperimentRow.of(s, "kd", users(read_back)) for s in read_back]
    (row,) = (found.model_dump() for found in averages(groups, table))
    assert row["cross_entropy_mean"] == pytest.approx(7 / 3)
    assert row["cross_entropy_sd"] == pytest.approx(math.sqrt(7 / 3))
    assert row["kl_to_teacher_mean"] is None and row["kl_to_teacher_n"] == 0
    (alone,) = (found.model_dump() for found in averages(group(read_back[:1]), table))
    assert alone["cross_entropy_sd"] is None and alone["group"] == "kd_seed1"


def test_the_order_of_seeds_does_not_matter_and_seeds_are_no_difference() -> None:
    gold = [baseline(f"gold_{i}", seedless_fingerprint="gold", comparable={"seed": i}) for i in (2, 1)]
    assert differing(*gold, *seeds(1.0, 2.0)) == []
    assert differing(baseline(comparable={"seed": 1}), *seeds(1.0, 2.0)) == ["seed differs: gold: 1; kd: 1, 2"]


def test_qualities_on_different_splits_are_not_compared() -> None:
    other = {"split_sha256": "z" * 64, "teacher": "t", "cross_entropy": 1.0}
    comparison = compared(baseline(), kd("kd", 600, 700, quality=other))
    assert comparison["pareto_refused"].startswith("quality is not compared: the evaluation split differs (gold: ssss")
    assert any(text.startswith("evaluation split differs") for text in comparison["warnings"])
    same_split = {"split_sha256": "s" * 64, "teacher": "another", "kl_to_teacher": 1.0}
    refused = compared(baseline(), kd("kd", 600, 700, quality=same_split), quality="kl_to_teacher")["pareto_refused"]
    assert "kl_to_teacher is to different teachers (gold: t; kd: another)" in refused


def test_tokens_of_different_vocabularies_are_compared_by_bits_per_byte_only() -> None:
    quality = {"split_sha256": "s", "teacher": "t", "cross_entropy": 3.0, "bits_per_byte": 1.5}
    gold = baseline(quality=quality | {"tokenizer_sha256": "a" * 64})
    other = kd("kd", 600, 700, quality=quality | {"tokenizer_sha256": "b" * 64, "bits_per_byte": 1.0})
    refused = compared(gold, other)
    assert (
        "cross_entropy counts tokens of different vocabularies, bits_per_byte does not (gold: aaaa" in refused["pareto_refused"]
    )
    assert [found["what"] for found in refused["answers"][0]["refusals"]] == ["evaluation split"]
    comparison = compared(gold, other, quality="bits_per_byte")
    assert comparison["pareto_refused"] is None and comparison["answers"][0]["better"] == 0.5


def judged(accuracy: float, **more) -> dict:
    entry = {"value": accuracy, "stderr": 0.1, "higher_is_better": True, "examples": 9, "shots": 0, "version": 1.0} | more
    return {"split_sha256": "s", "cross_entropy": 3.0, "tasks": {"chat_template": False, "metrics": {"arc/acc": entry}}}


def test_a_metric_that_an_experiment_lacks_or_was_asked_differently_is_named() -> None:
    lacks = compared(baseline(quality=judged(0.25)), kd("old", 100, 1000), quality="arc/acc")
    assert (
        lacks["pareto_refused"] == "a front needs two methods that are comparable, there is 1"
        and lacks["answers"][0]["final"] is None
    )
    other = compared(baseline(quality=judged(0.25)), kd("kd", 100, 1000, quality=judged(0.5, examples=8)), quality="arc/acc")
    assert other["pareto_refused"].startswith(
        "quality is not compared: arc/acc was asked differently (gold: examples 9, shots 0"
    )


def test_a_quality_that_no_evaluation_has_is_an_error(tmp_path, capsys) -> None:
    paths = write(tmp_path, baseline(quality=judged(0.25)))
    assert main(["--summary", *paths, "--quality", "gsm8k/acc", "--out", str(tmp_path / "c" / "comparison.json")]) == 1
    said = capsys.readouterr().err
    assert "comparison.quality = 'gsm8k/acc': no evaluation has it, there are" in said and "arc/acc: choose one" in said


def test_differences_of_every_kind_are_named() -> None:
    other = kd("kd", 600, 700, comparable={"seed": 2, "optimizer": "adafactor", "token budget": 5})
    for record in other["stages"].values():
        record["energy"]["total"] |= {"class": "modelled"}
    other["stages"]["student_train"]["devices"] = [{"name": "L40S"}]
    gold = baseline(comparable={"seed": 1, "optimizer": "adamw", "token budget": 4})
    assert differing(gold, other) == [
        "hardware differs: gold: x; kd: L40S, x",
        "energy class differs: gold: measured; kd: modelled",
        "seed differs: gold: 1; kd: 2",
        "optimizer differs: gold: adamw; kd: adafactor",
        "token budget differs: gold: 4; kd: 5",
    ]


def test_the_comparison_finds_by_itself_who_shares_a_record() -> None:
    rows = compared(kd("a", 600, 700), kd("b", 600, 800), kd("c", 600, 900, cache="its own"), baseline=None)["experiments"]
    assert [row["teacher_users"] for row in rows] == [2, 2, 1]
