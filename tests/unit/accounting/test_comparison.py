"""Comparisons worked out by hand: costs, sharing, seeds, refusals, bad input."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest

from tests.helpers.summaries import baseline, kd, policy_cost, read, served, stage, summary, write
from workflow_scripts.accounting import fairness, reuse
from workflow_scripts.accounting.formulas import amortised, served_tokens_until_repaid
from workflow_scripts.accounting.groups import averages, group
from workflow_scripts.accounting.load import Loaded, load
from workflow_scripts.accounting.rows import ExperimentRow, users
from workflow_scripts.accounting.sampling import only_one_instrument
from workflow_scripts.energy.uncertainty import Figure
from workflow_scripts.stages.comparison import compare, main

FIGURES = ("energy_by_stage", "energy_quality", "cost_by_reuse", "power", "loss_by_joules")
TABLES = ("comparison", "stage_energy", "amortised", "runs", "break_even", "repayment")


def compared(*summaries: dict, baseline: str | None = "gold", quality: str = "cross_entropy") -> dict:
    return compare(Loaded([read(s) for s in summaries]), quality, baseline).content()


def break_even(summaries: list[dict], baseline: str) -> list[dict]:
    return [row.model_dump() for row in reuse.break_even([read(s) for s in summaries], baseline)]


def repayment(summaries: list[dict]) -> list[dict]:
    return [row.model_dump() for row in reuse.repayment([read(s) for s in summaries])]


def amortised_rows(summaries: list[dict], baseline: str, shares: dict[str, int]) -> tuple[list[dict], list[str]]:
    rows, left_out = reuse.amortised_rows([read(s) for s in summaries], baseline, shares)
    return [row.model_dump() for row in rows], left_out


def differing(*summaries: dict) -> list[str]:
    return [difference.text for difference in fairness.differences([read(s) for s in summaries])]


def run(folder, paths: list[str], *options: str) -> tuple[int, dict]:
    out = folder / "out" / "comparison.json"
    code = main(["--summary", *paths, "--baseline", "gold", "--out", str(out), *options])
    return code, json.loads(out.read_text()) if out.is_file() else {}


def test_formulas_of_reuse_and_serving() -> None:
    assert amortised(600.0, 300.0, 1) == 900.0
    assert amortised(600.0, 300.0, 3) == 500.0
    with pytest.raises(ValueError, match="used at least once"):
        amortised(600.0, 300.0, 0)
    assert served_tokens_until_repaid(1.0 * 3.6e6, 5.0, 3.0) == 1.8e6, "one kWh at 2 J saved per token"
    assert served_tokens_until_repaid(1.0, 3.0, 3.0) is None
    assert served_tokens_until_repaid(1.0, 3.0, 4.0) is None


def test_break_even_of_one_instrument_and_one_run_each_has_no_interval() -> None:
    """N* = 600 / (1000 - 700) = 2; a meter that reads 5 % too much reads it in all three, and nothing tells of the spread."""
    (row,) = break_even([baseline(), kd("kd", 600, 700)], "gold")
    assert (row["reuses"], row["low"], row["high"]) == (pytest.approx(2), None, None)
    assert row["saving_pct"] == pytest.approx(30)
    assert row["never_probability"] is None
    assert row["interval"].startswith("none: one run each, by one instrument")


def test_an_unknown_uncertainty_is_no_error_that_cancels() -> None:
    meter = {("rapl", "h"): 5.0}
    assert only_one_instrument([Figure(100.0, meter), Figure(90.0, meter)])
    assert not only_one_instrument([Figure(100.0, meter), Figure(90.0, None)])
    assert not only_one_instrument([Figure(100.0, meter), Figure(90.0, {("rapl", "other"): 5.0})])
    assert not only_one_instrument([Figure(100.0, meter), Figure(90.0, meter, spread=1.0, runs=2)])


def test_break_even_of_two_hosts_may_be_never() -> None:
    """Saved: 1000 - 900 = 100, with independent standard deviations (50 and 45) / 1.96; bounds by Fieller's theorem.

    P(N < x) is that of 500 (1 + b) - x (1000 (1 + a) - 900 (1 + b)) < 0, a normal variable, where the denominator is positive.
    """
    (row,) = break_even([baseline(stage={"host": "a"}), kd("kd", 500, 900, stage={"host": "b"})], "gold")
    deviation = math.hypot(50, 45) / 1.959964
    never = 0.5 * math.erfc(100 / deviation / math.sqrt(2))
    assert row["reuses"] == pytest.approx(5)
    assert row["never_probability"] == pytest.approx(never, abs=0.003)
    for x, side in ((row["low"], -1), (row["high"], 1)):
        assert 100 * x - 500 == pytest.approx(side * 0.05 * math.hypot(500 + 900 * x, 1000 * x), rel=0.02)


def test_denominators_of_nothing_and_less_are_never() -> None:
    for student in (1000, 1001):
        (row,) = break_even([baseline(), kd("kd", 600, student)], "gold")
        assert row["reuses"] is None and row["verdict"].startswith("never")
        (row,) = break_even([baseline(), *seeds(student - 10.0, student + 10.0)], "gold")
        assert row["reuses"] is None and 0.5 <= row["never_probability"] < 1, "two runs tell how sure it is"


def test_repayment_by_serving() -> None:
    """(600 + 1400) J / (12 - 2) J per token = 200 tokens; one instrument, one run: no interval."""
    deployment = {"teacher": served(12.0), "model": served(2.0)}
    (row,) = repayment([kd("kd", 600, 1400, deployment=deployment)])
    assert row["tokens"] == pytest.approx(200) and row["low"] is None is row["high"]
    assert (row["reference"], row["verdict"]) == ("t", "after 200 tokens")
    (dearer,) = repayment([kd("kd", 600, 1400, deployment={"teacher": served(2.0), "model": served(2.0)})])
    assert dearer["tokens"] is None and dearer["verdict"].startswith("never")
    (unknown,) = repayment([kd("kd", 600, 1400)])
    assert unknown["verdict"] == "unknown: joules per generated token were not measured"


def test_cost_over_reuses() -> None:
    """RAPL errs 5 % on the whole: E(3) = 600 / 3 + 700 = 900 +/- 45."""
    rows, left_out = amortised_rows([baseline(), kd("kd", 600, 700)], "gold", {"kd": 3})
    assert left_out == []
    at = {row["reuses"]: row for row in rows if row["experiment"] == "kd"}
    assert at[3]["amortised_kwh"] * 3.6e6 == pytest.approx(900)
    assert at[3]["low_kwh"] * 3.6e6 == pytest.approx(855, abs=2) and at[3]["high_kwh"] * 3.6e6 == pytest.approx(945, abs=2)
    assert at[3]["here"] and not at[1]["here"]
    assert at[3]["cheaper_probability"] is None, "one run each, by one instrument"
    rows, _ = amortised_rows([baseline(), *seeds(690.0, 710.0)], "gold", {"kd": 3})
    assert [round(row["cheaper_probability"]) for row in rows if row["experiment"] == "kd" and row["reuses"] in (1, 10)] == [
        0,
        1,
    ]
    assert {1, 2, 10, 1000} <= set(at)


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
    assert comparison["break_even"][0]["verdict"].startswith("never"), "500 of its own and 800 before it are no saving"
    assert group([read(dpo)])[0].student.value == pytest.approx(1000)


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


def test_the_spread_over_seeds_is_in_the_interval() -> None:
    """Trainings of 690 and 710 J: mean 700, s = 14.14, t(1) at 97.5 % is 12.71; saved 300 +/- 12.71 * 14.14 / sqrt(2)."""
    summaries = [baseline(), *seeds(690.0, 710.0)]
    (row,) = break_even(summaries, "gold")
    assert (row["experiment"], row["runs"]) == ("kd", 2)
    assert row["reuses"] == pytest.approx(2), "the cache is shared, so it is one run of 600 J"
    assert row["low"] == pytest.approx(600 / (300 + 127.06), rel=0.03)
    assert row["high"] == pytest.approx(600 / (300 - 127.06), rel=0.06)
    assert row["interval"].startswith("95 %, instruments only"), "the baseline has one run"


def test_the_order_of_seeds_does_not_matter_and_seeds_are_no_difference() -> None:
    gold = [baseline(f"gold_{i}", seedless_fingerprint="gold", comparable={"seed": i}) for i in (2, 1)]
    assert differing(*gold, *seeds(1.0, 2.0)) == []
    assert differing(baseline(comparable={"seed": 1}), *seeds(1.0, 2.0)) == ["seed differs: gold: 1; kd: 1, 2"]


def test_the_front_and_how_sure_it_is() -> None:
    """`good` costs more and is better; `worse` is dominated on the same host whatever the meter's error."""
    quality = {"split_sha256": "s", "teacher": "t"}
    gold = baseline(quality=quality | {"cross_entropy": 3.0})
    good = kd("good", 100, 1000, quality=quality | {"cross_entropy": 2.0})
    worse = kd("worse", 200, 1000, cache="other", quality=quality | {"cross_entropy": 2.5})
    comparison = compared(gold, good, worse)
    assert comparison["pareto"] == ["gold", "good"]
    assert [row["pareto_probability"] for row in comparison["groups"]] == [None] * 3
    elsewhere = kd("worse", 200, 1000, "other", stage={"host": "b"}, quality=quality | {"cross_entropy": 2.5})
    chance = compared(gold, good, elsewhere)["groups"][2]["pareto_probability"]
    deviation = math.hypot(55, 60) / 1.959964  # of 1200 - 1100, two meters at 5 %
    assert chance == pytest.approx(0.5 * math.erfc(100 / deviation / math.sqrt(2)), abs=0.01)


def test_qualities_on_different_splits_are_not_compared() -> None:
    other = {"split_sha256": "z" * 64, "teacher": "t", "cross_entropy": 1.0}
    comparison = compared(baseline(), kd("kd", 600, 700, quality=other))
    assert comparison["pareto"] == []
    assert comparison["pareto_refused"].startswith("quality is not compared: the evaluation split differs (gold: ssss")
    assert any(text.startswith("evaluation split differs") for text in comparison["warnings"])
    same_split = {"split_sha256": "s" * 64, "teacher": "another", "kl_to_teacher": 1.0}
    refused = compared(baseline(), kd("kd", 600, 700, quality=same_split), quality="kl_to_teacher")["pareto_refused"]
    assert "kl_to_teacher is to different teachers (gold: t; kd: another)" in refused


def test_tokens_of_different_vocabularies_are_compared_by_bits_per_byte_only() -> None:
    quality = {"split_sha256": "s", "teacher": "t", "cross_entropy": 3.0, "bits_per_byte": 1.5}
    gold = baseline(quality=quality | {"tokenizer_sha256": "a" * 64})
    other = kd("kd", 600, 700, quality=quality | {"tokenizer_sha256": "b" * 64, "bits_per_byte": 1.0})
    refused = compared(gold, other)["pareto_refused"]
    assert "cross_entropy counts tokens of different vocabularies, bits_per_byte does not (gold: aaaa" in refused
    comparison = compared(gold, other, quality="bits_per_byte")
    assert comparison["pareto_refused"] is None and comparison["pareto"] == ["gold", "kd"]


def test_energies_of_different_boundaries_are_not_subtracted() -> None:
    both = [("cpu", "RAPL", 5.0, 500), ("gpu", "NVML total energy counter", 5.0, 100)]
    other = kd("kd", 600, 600, stage={"parts": both})
    (row,) = break_even([baseline(), other], "gold")
    assert row["reuses"] is None
    assert row["verdict"] == "refused: boundaries differ (cpu: gold; cpu+gpu: kd)"
    rows, left_out = amortised_rows([baseline(), other], "gold", {})
    assert {row["experiment"] for row in rows} == {"gold"}
    assert left_out == ["kd has no cost over reuses: refused: boundaries differ (cpu: gold; cpu+gpu: kd)"]


def judged(accuracy: float, **more) -> dict:
    entry = {"value": accuracy, "stderr": 0.1, "higher_is_better": True, "examples": 9, "shots": 0, "version": 1.0} | more
    return {"split_sha256": "s", "cross_entropy": 3.0, "tasks": {"chat_template": False, "metrics": {"arc/acc": entry}}}


def test_a_tasks_metric_is_the_quality_and_more_of_it_is_better() -> None:
    runs = (
        baseline(quality=judged(0.25)),
        kd("good", 100, 1000, quality=judged(0.5)),
        kd("bad", 200, 1000, quality=judged(0.2)),
    )
    comparison = compared(*runs, quality="arc/acc")
    assert comparison["pareto"] == ["gold", "good"]
    assert [row["arc/acc"] for row in comparison["experiments"]] == [0.25, 0.5, 0.2]
    assert [row["arc/acc_mean"] for row in comparison["groups"]] == [0.25, 0.5, 0.2]
    errors = [
        run | {"quality": judged(run["quality"]["tasks"]["metrics"]["arc/acc"]["value"], higher_is_better=False)}
        for run in runs
    ]
    assert compared(*errors, quality="arc/acc")["pareto"] == ["bad", "gold"], "an error rate: less is better"


def test_a_metric_that_an_experiment_lacks_or_was_asked_differently_is_named() -> None:
    lacks = compared(baseline(quality=judged(0.25)), kd("old", 100, 1000), quality="arc/acc")
    assert "old is no point of the Pareto front: no arc/acc: add 'arc' to its evaluation.lm_eval_tasks" in lacks["warnings"]
    other = compared(baseline(quality=judged(0.25)), kd("kd", 100, 1000, quality=judged(0.5, examples=8)), quality="arc/acc")
    assert other["pareto_refused"].startswith(
        "quality is not compared: arc/acc was asked differently (gold: examples 9, shots 0"
    )


def test_a_quality_that_no_evaluation_has_is_an_error(tmp_path, capsys) -> None:
    paths = write(tmp_path, baseline(quality=judged(0.25)))
    assert main(["--summary", *paths, "--quality", "gsm8k/acc", "--out", str(tmp_path / "c" / "comparison.json")]) == 1
    said = capsys.readouterr().err
    assert "comparison.quality = 'gsm8k/acc': no evaluation has it, there are" in said and "arc/acc: choose one" in said


def test_one_point_is_no_front_and_no_quality_is_no_point() -> None:
    comparison = compared(baseline(), kd("old", 600, 700, quality=None, references={}))
    assert comparison["pareto"] == []
    assert comparison["pareto_refused"] == "a front needs two points, there is 1 (gold)"
    assert "old is no point of the Pareto front: no cross_entropy" in comparison["warnings"]
    assert comparison["break_even"][0]["reuses"] == pytest.approx(2), "its energy is compared all the same"


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


def test_bad_input_is_named_and_the_rest_goes_on(tmp_path, capsys) -> None:
    headless = kd("headless", 600, 700)
    del headless["stages"]["logit_caching"]
    partial = kd("partial", 600, 700, cache="p")
    partial["stages"]["student_train"]["status"] = "partial"
    broken = kd("broken", 600, 700, cache="b")
    broken["stages"]["student_train"]["total_energy_joules"] = -1.0
    paths = write(
        tmp_path, baseline(), kd("kd", 600, 700), headless, partial, broken, {"experiment_name": "alien", "schema": "x/1"}
    )
    cut = tmp_path / "cut.json"
    cut.write_text(json.dumps(baseline())[:200])
    code, comparison = run(tmp_path, [*paths, paths[0], str(cut), str(tmp_path / "nowhere.json")])
    assert code == 0
    assert (comparison["counts"]["read"], comparison["counts"]["left_out"]) == (5, 3)
    assert comparison["counts"]["warnings"] == len(comparison["warnings"])
    said = "\n".join(comparison["warnings"])
    for text in (
        "headless: stage logit_caching is missing, so it has no total",
        "partial: stage student_train is partial: its energy is a lower bound",
        "broken: stage student_train: total_energy_joules = -1.0 is no energy",
        "schema 'x/1', this program reads experiment-summary/1",
        f"{cut} is not whole JSON",
        "nowhere.json does not exist",
        f"{paths[0]} was named twice: it counts once",
    ):
        assert text in said
    verdicts = {row["experiment"]: row["verdict"] for row in comparison["break_even"]}
    assert verdicts["kd"] == "after 2.0 reuses"
    assert verdicts["partial"].startswith("unknown: partial: stage student_train is partial")
    assert verdicts["broken"].startswith("unknown: broken")
    totals = {row["experiment"]: row["total_kwh"] for row in comparison["experiments"]}
    assert totals["headless"] is None and totals["broken"] is None and totals["partial"] is not None
    assert set(comparison["pareto"]) <= {"gold", "kd"}
    assert "warning: headless" in capsys.readouterr().err


def test_nothing_readable_is_an_error(tmp_path, capsys) -> None:
    (tmp_path / "a.json").write_text("[1, 2")
    code, comparison = run(tmp_path, [str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert (code, comparison) == (1, {})
    assert "error: none of the 2 summaries can be read" in capsys.readouterr().err


def test_two_experiments_of_one_name_are_told_apart(tmp_path) -> None:
    write(tmp_path / "one", baseline())
    write(tmp_path / "two", baseline(student=2000.0))
    loaded = load([tmp_path / folder / "gold" / "experiment_summary.json" for folder in ("one", "two")])
    assert [s.experiment_name for s in loaded.summaries] == ["gold", "gold#2"]
    assert "is called gold#2 here" in loaded.warnings[0]


def test_tables_are_tidy_and_the_same_twice(tmp_path) -> None:
    deployment = {"teacher": served(12.0), "model": served(2.0)}
    paths = write(tmp_path, baseline(), *[s | {"deployment": deployment} for s in seeds(690.0, 710.0)])
    assert run(tmp_path, paths)[0] == 0
    folder = tmp_path / "out"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {f"{name}.svg" for name in FIGURES} | {f"{name}.csv" for name in TABLES} <= set(before)
    assert run(tmp_path, paths)[0] == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not list(folder.glob("*.parquet"))
    sizes = {name: pd.read_csv(folder / f"{name}.csv").shape[0] for name in TABLES}
    assert sizes["comparison"] == 3 and sizes["stage_energy"] == 1 + 2 + 2 and sizes["runs"] == 2
    frame = pd.read_csv(folder / "stage_energy.csv")
    assert frame.groupby("experiment")["joules"].sum().to_dict() == {"gold": 1000, "kd_seed1": 1290, "kd_seed2": 1310}
    assert not frame.duplicated(["experiment", "stage"]).any()
    assert not pd.read_csv(folder / "amortised.csv").duplicated(["experiment", "reuses"]).any()


def test_a_single_experiment_without_baseline_has_all_files(tmp_path) -> None:
    out = tmp_path / "out" / "comparison.json"
    assert main(["--summary", *write(tmp_path, baseline()), "--out", str(out)]) == 0
    for name in TABLES:
        assert list(pd.read_csv(out.with_name(f"{name}.csv")).columns), name
    assert json.loads(out.read_text())["break_even"] == []


def test_a_summary_without_lineage_and_quality_is_compared(tmp_path) -> None:
    bare = kd("bare", 600, 700)
    for key in ("lineage", "quality", "references", "comparable", "deployment"):
        del bare[key]
    code, comparison = run(tmp_path, write(tmp_path, baseline(), bare))
    assert code == 0 and comparison["counts"]["read"] == 2
    assert comparison["break_even"][0]["reuses"] == pytest.approx(2)


def test_a_missing_stage_is_named_at_its_bar(tmp_path) -> None:
    """By the stage's name, whatever its problem's sentence says."""
    headless = kd("headless", 600, 700)
    del headless["stages"]["logit_caching"]
    broken = kd("broken", 600, 700)
    broken["stages"]["student_train"]["total_energy_joules"] = -1.0
    assert run(tmp_path, write(tmp_path, baseline(), headless, broken))[0] == 0
    text = (tmp_path / "out" / "energy_by_stage.svg").read_text()
    assert "<!-- no figure: logit_caching -->" in text and "<!-- no figure: student_train -->" in text


def test_the_comparison_finds_by_itself_who_shares_a_record() -> None:
    rows = compared(kd("a", 600, 700), kd("b", 600, 800), kd("c", 600, 900, cache="its own"), baseline=None)["experiments"]
    assert [row["teacher_users"] for row in rows] == [2, 2, 1]
