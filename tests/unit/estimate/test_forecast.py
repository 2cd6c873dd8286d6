"""The forecast's arithmetic against numbers worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.forecasts import (
    CPU,
    EVALUATED,
    HERE,
    STUDENT,
    TEACHER,
    answers,
    manifest,
    planned,
    price,
    state,
    task,
    training,
)
from workflow_scripts.accounting.prediction import Bounds, Forecast
from workflow_scripts.estimate import forecast as module
from workflow_scripts.estimate.artefacts import Artefacts, count_parameters
from workflow_scripts.estimate.history import Hardware, read_history
from workflow_scripts.estimate.pricing import ZERO, Range, UnpricedError
from workflow_scripts.estimate.work import WORK, amount, done, expected
from workflow_scripts.pipelines import PIPELINES
from workflow_scripts.plan.dry_run import PlannedJob
from workflow_scripts.plan.slices import settings_fingerprint


def test_expected_work_of_each_stage(folder: Path) -> None:
    """Student 1000, teacher 5000 parameters; train split 800 input and 400 loss tokens, so prompts of 40."""
    whole = task("student_train", training(600), **STUDENT)
    assert amount(whole, expected(whole)) == Range.exactly(6 * 1000 * 600 * 2)
    assert expected(whole).tokens() == Range.exactly(600.0)
    again = task("student_train", training(600, gradient_checkpointing=True), **STUDENT)
    assert amount(again, expected(again)) == Range.exactly(8 * 1000 * 600 * 2)
    assert expected(task("student_train", training(600, max_epochs=1), **STUDENT)).tokens() == Range.exactly(400.0)
    pairs = {"policy": "models/small/model", "preferences": "teacher/p/preference_dataset", "corpus": "corpus/c/dataset"}
    dpo = task("dpo_training", training(600), **pairs)
    assert amount(dpo, expected(dpo)).mid == 8 * 1000 * 600 * 2.5
    assert expected(dpo).rows == 4
    cache = task("logit_caching", {"distillation": {"batch_size": 2}}, **TEACHER)
    assert amount(cache, expected(cache)) == Range.exactly(2 * 5000 * 800)
    written = task("synthetic_generation", answers(6), **TEACHER)
    assert expected(written).tokens() == Range.exactly(60.0) * Range(0.2, 0.6, 1.0)
    assert amount(written, expected(written)).high == pytest.approx(2 * 5000 * (6 * 40 + 60))
    adopted = task("synthetic_generation", answers(6, use_existing=True), **TEACHER)
    assert amount(adopted, expected(adopted)) == ZERO
    rows = task("preprocess", {"data": {"train_examples": 7, "evaluation_examples": 2}})
    assert amount(rows, expected(rows)) == Range.exactly(9.0)
    unlisted = task("export", {})
    assert amount(unlisted, expected(unlisted)) == Range.exactly(1.0)
    with pytest.raises(UnpricedError, match=r"its training\.token_budget is not known"):
        expected(task("student_train", {}, **STUDENT))


def test_what_the_teacher_wrote_replaces_the_corpus_and_a_logit_cache_does_not(folder: Path) -> None:
    """One epoch: 400 loss tokens of the corpus, or the 90 that the teacher wrote."""
    manifest("results/teacher/s/synthetic_dataset", {"loss_tokens": 90})
    one = training(600, max_epochs=1)
    for name, tokens in (("teacher/c/logit_cache", 400.0), ("teacher/s/synthetic_dataset", 90.0)):
        assert expected(task("student_train", one, teacher_output=name, **STUDENT)).tokens() == Range.exactly(tokens)
    unknown = task("student_train", one, teacher_output="teacher/t/synthetic_dataset", **STUDENT)
    assert expected(unknown).tokens() == Range.exactly(600.0)
    state("student_train", "a", training(300), {"loss": 300, "input": 600}, 5e3, 50.0, **STUDENT)
    written = {**STUDENT, "teacher_output": "teacher/s/synthetic_dataset"}
    state("student_train", "b", training(300), {"loss": 100, "input": 500}, 5e3, 50.0, **written)
    history, _ = read_history(Path("results"))
    like = task("student_train", training(600), history, teacher_output="teacher/t/synthetic_dataset", **STUDENT)
    assert expected(like).input == Range.exactly(600.0 * 5), "trainings on rows that a teacher wrote tell of each other"


def test_past_answers_tell_how_much_of_the_limit_is_used(folder: Path) -> None:
    work = {"input": 240, "generated": 45, "examples": 6}
    state("synthetic_generation", "a", answers(6), work, 1000.0, 10.0, **TEACHER)
    history, _ = read_history(Path("results"))
    found = task("synthetic_generation", answers(6), history, **TEACHER)
    assert expected(found).tokens() == Range.exactly(45.0)  # 45 of 6 x 10
    assert amount(found, expected(found)).mid == pytest.approx(done(history[0], Artefacts([], Path())))


def test_the_tokens_of_pairs_are_those_of_a_past_evaluation_with_pairs(folder: Path) -> None:
    """300 tokens where the held-out rows have 100: three times as many; nothing else tells 1 to 10 times."""
    settings = {"evaluation": {"generation_prompts": 2, "max_new_tokens": 5, "batch_size": 2}}
    pairs = EVALUATED | {"preferences": "teacher/p/preference_dataset"}
    assert expected(task("evaluation", settings, **pairs)).tokens() == Range(100.0, 200.0, 1000.0)
    state("evaluation", "a", settings, {"input": 300, "generated": 6}, 1000.0, 10.0, **pairs)
    history, _ = read_history(Path("results"))
    assert expected(task("evaluation", settings, history, **pairs)).tokens() == Range.exactly(300.0)


def test_joules_scale_with_tokens_and_parameters(folder: Path) -> None:
    """Records of 100 J + 1 mJ per 6 FLOPs: 700 and 1300 J for 300 and 600 tokens (twice as many inputs) of 1000 parameters.

    900 tokens of the model of 5000 parameters: 100 + 900 x 2 x 5000 x 1e-3 = 9100 J, at 100 g/kWh and a PUE of 1.5.
    """
    for mark, tokens in (("a", 300), ("b", 600)):
        work = {"loss": tokens, "input": 2 * tokens}
        state("student_train", mark, training(tokens), work, 100 + 2.0 * tokens, 10.0, **STUDENT)
    row = price(planned("student_train", training(900), student="models/large/model", corpus="corpus/c/dataset"))
    assert row.basis == "history n=2"
    assert row.kwh is not None
    assert row.kwh.predicted == pytest.approx(9100 / 3.6e6)
    assert row.grams is not None
    assert row.grams.predicted == pytest.approx(9100 / 3.6e6 * 100 * 1.5)
    assert row.tokens == Bounds(low=900, predicted=900, high=900)


def test_the_outcome_of_the_same_training_is_inside(folder: Path) -> None:
    state("student_train", "a", training(300), {"loss": 300, "input": 600}, 5000.0, 50.0, **STUDENT)
    job = planned("student_train", training(300), **STUDENT)
    row = price(job)
    assert row.kwh is not None
    assert row.kwh.predicted == pytest.approx(5000 / 3.6e6)
    assert row.kwh.low < 5000 / 3.6e6 < row.kwh.high
    assert row.hours is not None
    assert row.hours.predicted == pytest.approx(50 / 3600)
    (cost,) = module.estimates([job], folder)
    assert cost is not None and cost.basis == "history n=1"
    joules, seconds = cost.joules, cost.seconds
    assert (joules.low, joules.mid, joules.high) == pytest.approx(
        (row.kwh.low * 3.6e6, row.kwh.predicted * 3.6e6, row.kwh.high * 3.6e6)
    )
    assert (seconds.low, seconds.high) == pytest.approx((row.hours.low * 3600, row.hours.high * 3600))


def test_an_energy_budget_caps_the_forecast(folder: Path) -> None:
    """Without it the same training costs 3.6 MJ = 1 kWh in the middle; a budget of half of that halves energy and time."""
    state("student_train", "m1", training(600), {"loss": 600, "input": 1200}, 3.6e6, 100.0, **STUDENT)
    free = price(planned("student_train", training(600), **STUDENT))
    capped = training(600)
    capped["training"]["energy_budget_kwh"] = 0.5
    found = price(planned("student_train", capped, **STUDENT))
    assert free.kwh.predicted == pytest.approx(1.0) and not any("energy_budget" in note for note in free.notes)
    assert (found.kwh.low, found.kwh.predicted) == (pytest.approx(0.5), pytest.approx(0.5))
    assert found.kwh.high == pytest.approx(0.55) and found.hours.predicted == pytest.approx(free.hours.predicted / 2)
    assert "training.energy_budget_kwh = 0.5 may end it" in found.notes
    capped["training"]["energy_budget_kwh"] = 9.0
    assert price(planned("student_train", capped, **STUDENT)).kwh == free.kwh


@pytest.mark.parametrize(
    ("past", "planned_on", "told"),
    [
        ((CPU, ()), HERE, True),
        (("Other CPU", ()), HERE, False),
        (("Other CPU", ("L40S",)), HERE, False),
        ((CPU, ("L40S",)), Hardware(CPU, 4, ("L40S", "L40S")), True),
        (("Other CPU", ("L40S",)), Hardware(CPU, 4, ("L40S",)), True),
        ((CPU, ("L40S",)), Hardware(CPU, 4, ("H100",)), False),
    ],
)
def test_without_a_record_on_comparable_hardware_nothing_is_told(folder: Path, monkeypatch, past, planned_on, told) -> None:
    cpu, devices = past
    monkeypatch.setattr(Hardware, "here", lambda: planned_on)
    state("student_train", "a", training(300), {"loss": 300, "input": 600}, 5e3, 50.0, cpu=cpu, devices=devices, **STUDENT)
    row = price(planned("student_train", training(300), **STUDENT))
    assert (row.kwh is not None) == told
    if not told:
        assert row.reason == f"unknown: run one small job first (no record of such a stage on {planned_on})"
    elif cpu != planned_on.cpu:
        assert row.notes == ["only records of another CPU (Other CPU): range x 2"]
        assert row.kwh is not None and row.kwh.high == pytest.approx(5000 * 1.3 * 2 / 3.6e6)


def test_a_training_made_another_way_is_a_doubt_and_one_alike_is_preferred(folder: Path) -> None:
    plain, saving = (training(300, gradient_checkpointing=way, eval_steps=None) for way in (False, True))
    state("student_train", "a", plain, {"loss": 300, "input": 600}, 5000.0, 50.0, **STUDENT)
    row = price(planned("student_train", saving, **STUDENT))
    assert row.notes == ["only records of training.gradient_checkpointing False: range x 2"]
    state("student_train", "b", saving, {"loss": 300, "input": 600}, 8000.0, 80.0, **STUDENT)
    row = price(planned("student_train", saving, **STUDENT))
    assert (row.notes, row.basis) == ([], "history n=1")
    assert row.kwh is not None and row.kwh.predicted == pytest.approx(8000 / 3.6e6)


def test_answers_in_other_batches_or_by_another_backend_are_a_doubt(folder: Path) -> None:
    work = {"generated": 45, "input": 240, "examples": 6}
    state("synthetic_generation", "a", answers(6), work, 1000.0, 10.0, **TEACHER)
    for key, other, before in (("batch_size", 32, 2), ("backend", "vllm", "transformers")):
        settings = answers(6)
        generation = settings["synthetic_data"]["generation"]
        generation |= {"backend": "transformers"} | {key: other}
        past = Path("results/state/synthetic_generation/a/record.json")
        past.unlink()
        made = {"synthetic_data": {"max_gen_examples": 6, "generation": generation | {key: before}}}
        state("synthetic_generation", "a", made, work, 1000.0, 10.0, **TEACHER)
        assert price(planned("synthetic_generation", settings, **TEACHER)).notes == [
            f"only records of synthetic_data.generation.{key} {before}: range x 2"
        ]


def test_another_prerun_is_a_doubt_where_its_record_names_its_settings(folder: Path) -> None:
    job = planned("prerun", {"prerun": {"idle_seconds": 5.0}}, "results/prerun/local/stages/prerun.json", None)
    state("prerun", "a", {}, {}, 100.0, 10.0)
    assert (price(job).label, price(job).notes) == ("prerun", [])
    Path("results/state/prerun/a/record.json").unlink()
    state("prerun", "b", {"prerun": {"idle_seconds": 9.0}}, {}, 100.0, 10.0)
    assert price(job).notes == ["only records of other prerun settings: range x 2"]


def test_records_with_another_boundary_are_a_doubt(folder: Path) -> None:
    job = planned("student_train", training(300), **STUDENT)
    for mark, boundary, end in (("a", ["cpu", "dram"], 50.0), ("b", ["cpu"], 100.0)):
        path = state("student_train", mark, training(300), {"loss": 300, "input": 600}, 5000.0, 50.0, **STUDENT)
        content = json.loads(path.read_text())
        content["energy"]["total"]["boundary"], content["end_time"] = boundary, end
        path.write_text(json.dumps(content))
        assert (price(job).basis, price(job).notes) == ("history n=1", [])
    old, new = read_history(Path("results"))[0][::-1]
    assert list(module.Estimator([job], folder).doubts(job, old, new)) == ["another boundary (cpu, dram)"]


def test_tasks_of_the_harness_are_priced_by_an_evaluation_that_ran_them_only(folder: Path) -> None:
    settings = {"generation_prompts": 2, "max_new_tokens": 5, "batch_size": 2, "lm_eval_tasks": [], "lm_eval_limit": None}
    plain, tasks = ({"evaluation": settings | {"lm_eval_tasks": names}} for names in ([], ["arc_easy"]))
    state("evaluation", "a", plain, {"input": 100, "generated": 6}, 1000.0, 10.0, **EVALUATED)
    row = price(planned("evaluation", tasks, **EVALUATED))
    assert row.kwh is None and "evaluation.lm_eval_tasks is not known before" in (row.reason or "")
    state("evaluation", "b", tasks, {"input": 100, "generated": 6}, 9000.0, 90.0, **EVALUATED)
    row = price(planned("evaluation", tasks, **EVALUATED))
    assert row.kwh is not None and row.kwh.predicted == pytest.approx(9000 / 3.6e6)


def test_what_cannot_be_priced_is_unknown_and_makes_the_total_a_lower_bound(folder: Path) -> None:
    rows = {"data": {"train_examples": 1, "evaluation_examples": 1}}
    jobs = [
        planned("preprocess", rows, "results/corpus/a/stages/preprocess.json", None),
        planned("student_train", training(600), student="models/absent/model", corpus="corpus/c/dataset"),
    ]
    found = module.forecast(jobs, folder, [], folder / "forecast.json", 0.0)
    assert [row.kwh for row in found.rows] == [None, None]
    assert (found.rows[0].reason or "").startswith("unknown: run one small job first")
    assert found.rows[1].reason == found.rows[0].reason
    assert found.total.kwh is None
    assert found.total.unpriced == ["preprocess a", "student_train x"]
    assert any("total" in line and "unknown" in line for line in module.render(found))
    assert module.estimates(jobs, folder) == [None, None]

    state("preprocess", "p", rows, {}, 3600.0, 36.0)
    state("student_train", "a", training(300), {"loss": 300, "input": 600}, 5000.0, 50.0, **STUDENT)
    found = module.forecast(jobs, folder, [], folder / "forecast.json", 0.0)
    (line,) = (line for line in module.render(found) if line.startswith("total"))
    assert f">= {3600 * 0.7 / 3.6e6:.3g}" in line and " to " not in line
    assert found.total.unpriced == ["student_train x"]
    assert "the parameters of its model are not known" in (found.rows[1].reason or "")


def test_stages_on_no_bill_make_no_lower_bound_and_records_without_a_figure_are_said(folder: Path) -> None:
    state("preprocess", "p", {"data": {"train_examples": 1, "evaluation_examples": 1}}, {}, 3600.0, 36.0)
    state("export", "e", {}, {}, None, 1.0)
    rows = {"data": {"train_examples": 1, "evaluation_examples": 1}}
    found = module.forecast([planned("preprocess", rows), planned("export", {})], folder, [], folder / "f.json", 0.0)
    assert found.total.unpriced == []
    assert found.rows[1].reason == "no record of such a stage has an energy figure and known work"
    assert found.total.kwh is not None and found.total.kwh.predicted == pytest.approx(0.001)


def test_runs_of_one_method_have_a_line_of_their_own(folder: Path) -> None:
    state("student_train", "a", training(300), {"loss": 300, "input": 600}, 3600.0, 50.0, **STUDENT)
    jobs = [
        planned("student_train", training(300), f"results/{name}/stages/student_train.json", name, **STUDENT)
        for name in ("kd-seed0", "kd-seed1", "gold")
    ]
    lines = module.render(module.forecast(jobs, folder, [], folder / "f.json", 0.0))
    (line,) = [line for line in lines if line.startswith("all runs of")]
    assert line.split()[:5] == ["all", "runs", "of", "kd", "2"] and line.split()[5] == "0.002"


def test_the_mark_of_a_row_is_that_of_the_settings_without_locations() -> None:
    job = planned("evaluation", {"evaluation": {"batch_size": 2}, "dpo_preference_dataset_path": "elsewhere"})
    assert price(job).settings == settings_fingerprint('{"evaluation":{"batch_size":2}}')


def test_a_model_that_was_made_again_since_is_a_doubt(folder: Path) -> None:
    settings = {"evaluation": {"generation_prompts": 2, "max_new_tokens": 5, "batch_size": 2}}
    state("evaluation", "a", settings, {"input": 100, "generated": 6}, 1000.0, 10.0, **EVALUATED)
    assert price(planned("evaluation", settings, **EVALUATED)).notes == []
    manifest("results/models/small/model", {"parameters": 1000, "source": "package"})
    assert price(planned("evaluation", settings, **EVALUATED)).notes == [], "written again with the same content"
    manifest("results/models/small/model", {"parameters": 1001, "source": "package"})
    assert "a model that was made again since" in price(planned("evaluation", settings, **EVALUATED)).notes[0]


def test_parts_and_merge_are_one_stage_and_each_part_does_its_share(folder: Path) -> None:
    """A record of 8e6 FLOPs, 1000 J in 10 s, two processes: 8 s of 100 W are a process's fixed 450 J at most."""
    settings = {"distillation": {"batch_size": 2}}
    path = state("logit_caching", "a", settings, {"input": 800, "loss": 400}, 1000.0, 10.0, **TEACHER)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"parts": 1}))

    def job(record: str, settings: dict, **split) -> PlannedJob:
        return planned("logit_caching", settings, f"results/teacher/{record}.json", None, **split, **TEACHER)

    parts = [job(f"raw/parts/{n}-of-2.record", settings, part=f"{n}-of-2") for n in (1, 2)]
    merge, again = (
        job(f"{name}/stages/logit_caching", {"distillation": {"batch_size": 2, "keep": name}}, parts=2) for name in "ab"
    )
    other = job("c/stages/logit_caching", {"distillation": {"batch_size": 4}}, parts=2)
    groups = module.stages([other, parts[0], merge, again, parts[1], planned("evaluation", {})])
    assert sorted(len(group) for group in groups) == [1, 1, 1, 3]
    replicates = module.stages([parts[0], parts[0], merge, merge, parts[1], parts[1]])
    assert [[job.part for job in group] for group in replicates] == [["2-of-2", "1-of-2", None]] * 2
    assert [*parts[::-1], merge] in groups
    estimator = module.Estimator([merge, *parts], folder)
    whole, half, gathered = (estimator.cost(group)[0].joules.mid for group in ([*parts, merge], parts[:1], [merge]))
    assert gathered == 450.0
    assert half == pytest.approx(450.0 + 100.0 / 2)
    assert whole == pytest.approx(half + half + gathered)
    assert None not in module.estimates([merge, *parts], folder)


def test_the_command_writes_a_forecast_whatever_record_is_damaged(folder: Path, monkeypatch, capsys) -> None:
    state("student_train", "a", training(300), {"loss": 300, "input": 600}, 5000.0, 50.0, **STUDENT)
    bad = Path("results/y/stages/evaluation.json")
    bad.parent.mkdir(parents=True)
    bad.write_text('{"cut')
    jobs = [planned("student_train", training(300), **STUDENT), planned("export", {})]
    monkeypatch.setattr(module, "planned", lambda arguments: (jobs, folder))
    assert module.main(["x"]) == 0
    out = capsys.readouterr().out
    assert f"note: left out: {bad} is not whole JSON" in out
    assert "note: export x: unknown: run one small job first (no record of such a stage on Some CPU x 4)" in out
    found = Forecast.model_validate_json(Path("results/forecast.json").read_text())
    assert [row.kwh is None for row in found.rows] == [False, True]
    assert module.main(["x", "--out", str(folder / "other.json")]) == 0
    monkeypatch.setattr(module, "planned", lambda arguments: ([], folder))
    assert module.main([]) == 0
    assert "Nothing to forecast" in capsys.readouterr().out
    monkeypatch.setattr(module, "planned", lambda arguments: (jobs, folder))
    Path("results/forecast.json").write_text("{}")
    assert module.main([]) == 1
    assert "is not a forecast/1, so it is not replaced: delete it" in capsys.readouterr().err


def test_models_of_the_plan_are_known_by_the_job_that_makes_them(folder: Path) -> None:
    """A random OLMo 2 that is not there yet, a student that is trained from it, and a copy of a model that nobody knows."""
    random = {"source": "random", "architecture": "olmo2-10m", "tokenizer": "t"}
    made = planned("prepare_model", {"models": {"r": random}}, "results/models/r/stages/prepare_model.json", None)
    trained = planned("student_train", training(9), "runs/e/stages/student_train.json", "e", student="models/r/model")
    judged = planned("evaluation", {}, "runs/e/stages/evaluation.json", "e", model="e/final_model")
    found = Artefacts([made, trained, judged], folder)
    shape = found.parameters("results/models/r/model/manifest.json")
    assert shape == found.parameters("results/e/final_model/manifest.json") > 9e6
    pruned = {"source": "pruned", "of": "large", "keep_layers": [0]}
    copied = planned(
        "prepare_model",
        {"models": {"p": pruned}},
        "results/models/p/stages/prepare_model.json",
        None,
        parent="models/large/model",
    )
    with pytest.raises(UnpricedError, match=r"p, which is pruned from \S+, are not known before"):
        Artefacts([copied], folder).parameters("results/models/p/model/manifest.json")


def test_the_root_is_found_from_any_job() -> None:
    for job in (
        planned("student_train", {}, "/runs/x/stages/student_train.json", **STUDENT),
        planned("preprocess", {}, "results/corpus/c/stages/preprocess.json"),
        planned("comparison", {}, "results/comparison/stages/comparison.json"),
        planned("experiment_summary", {}, "results/x/stages/experiment_summary.json"),
    ):
        assert module.root_of([job]) == Path("results")


def test_every_stage_of_a_pipeline_has_a_work_model() -> None:
    for pipeline in PIPELINES.values():
        assert {stage for stage in (pipeline.teacher, pipeline.training, "evaluation") if stage} <= set(WORK)


def test_parameters_from_a_config_alone(tmp_path: Path) -> None:
    """Llama, V = 97, d = 32, tied: 97 x 32 + 32, and per layer q, o 32 x 32, k, v 32 x 16, three 32 x 48, two norms of 32."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    content = {"model_type": "llama", "vocab_size": 97, "num_hidden_layers": 5, "tie_word_embeddings": True, **shape}
    (tmp_path / "config.json").write_text(json.dumps(content))
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32
    assert count_parameters(tmp_path) == 97 * 32 + 32 + 5 * layer
    assert count_parameters(tmp_path, layers=2) == 97 * 32 + 32 + 2 * layer


def test_wasted_energy_is_not_predicted(folder: Path) -> None:
    state("student_train", "a", training(300), {"loss": 300, "input": 600}, 100.0, 40.0, **STUDENT)
    past = read_history(Path("results"))[0][0]
    record = past.record.model_copy(update={"useful_j": 75.0})
    assert replace(past, record=record).cost() == (75.0, 30.0)
