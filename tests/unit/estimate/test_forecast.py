"""The forecast's arithmetic against numbers worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.summaries import stage
from tests.unit.energy.test_record import figure
from workflow_scripts.accounting.outcome import ForecastError, compare_forecast, read_forecast
from workflow_scripts.accounting.prediction import Bounds, Forecast, ForecastRow
from workflow_scripts.energy.ledger import LedgerWriter, read_attempts
from workflow_scripts.energy.model import StageRecord
from workflow_scripts.energy.record import build_record
from workflow_scripts.energy.state import file_identity
from workflow_scripts.estimate import forecast as module
from workflow_scripts.estimate.artefacts import Artefacts, count_parameters
from workflow_scripts.estimate.history import Hardware, Past, read_history
from workflow_scripts.estimate.pricing import ZERO, Range, Sample, UnpricedError, fixed_joules, from_history
from workflow_scripts.estimate.work import WORK, Task, amount, done, expected
from workflow_scripts.pipelines import PIPELINES
from workflow_scripts.plan.dry_run import PlannedJob
from workflow_scripts.plan.slices import settings_fingerprint
from workflow_scripts.settings.schema import Energy

CPU = "Some CPU"
HERE = Hardware(CPU, 4, ())


# ---- pure arithmetic


def test_ranges() -> None:
    assert Range(1, 2, 3) * Range(2, 2, 4) == Range(2, 4, 12)
    assert Range(1, 2, 3) + Range(1, 1, 1) == Range(2, 3, 4)
    assert Range(1, 2, 3).wider(2) == Range(0.5, 2, 6)


def test_the_fixed_cost_is_the_intercept_of_several_records() -> None:
    """Joules 100 + 2 x work exactly: all slopes are 2, the intercept 100."""
    samples = [Sample(work, 100 + 2 * work, 10.0) for work in (10.0, 50.0, 200.0)]
    assert fixed_joules(samples) == Range(100, 100, 100)
    found = from_history(samples, Range.exactly(1000.0), 1, 1)
    assert found.joules.mid == pytest.approx(2100)
    assert (found.joules.low, found.joules.high) == pytest.approx((2100 * 0.85, 2100 * 1.15))
    assert found.basis == "history n=3"


def test_median_and_spread_of_records_of_equal_work() -> None:
    """No slope: 2, 8 or 30 s of 10 W are fixed. At twice the work J -> fixed + (J - fixed) x 2."""
    samples = [Sample(100.0, joules, joules / 10) for joules in (900.0, 1000.0, 1200.0)]
    assert fixed_joules(samples) == Range(20, 80, 300)
    found = from_history(samples, Range.exactly(200.0), 1, 1)
    assert found.joules.mid == pytest.approx(80 + 920 * 2)
    assert found.joules.low == pytest.approx((300 + 600 * 2) * 0.85)
    assert found.joules.high == pytest.approx((20 + 1180 * 2) * 1.15)
    assert found.seconds.mid == pytest.approx(found.joules.mid / 10)


def test_the_range_of_a_repetition_contains_its_own_outcome() -> None:
    for joules in (30.0, 1e3, 1e7):
        found = from_history([Sample(5.0, joules, joules / 100)], Range.exactly(5.0), 1, 1)
        assert found.joules.mid == pytest.approx(joules)
        assert found.joules.low == pytest.approx(0.7 * joules)
        assert found.joules.high == pytest.approx(1.3 * joules)


def test_doubtful_records_serve_only_where_there_is_no_other_and_widen_the_range() -> None:
    good, other = Sample(5.0, 1000.0, 10.0), Sample(5.0, 9000.0, 10.0, doubts=("other hardware",))
    assert from_history([good, other], Range.exactly(5.0), 1, 1).joules.mid == pytest.approx(1000)
    found = from_history([other], Range.exactly(5.0), 1, 1)
    assert (found.joules.low, found.joules.high) == pytest.approx((9000 * 0.7 / 2, 9000 * 1.3 * 2))
    assert found.notes == ("only records of other hardware: range x 2",)


def test_more_devices_take_less_time_for_the_same_energy() -> None:
    sample = Sample(5.0, 1000.0, 10.0, devices=2)
    one, four = (from_history([sample], Range.exactly(5.0), 1, n) for n in (1, 4))
    assert one.joules == four.joules
    assert (one.seconds.mid, four.seconds.mid) == pytest.approx((20.0, 5.0))


# ---- jobs, manifests and records


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a student of 1000 parameters and a corpus of 2 input tokens per loss token."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Hardware, "here", lambda: HERE)
    manifest("results/models/small/model", {"parameters": 1000, "source": "package"})
    manifest("results/models/large/model", {"parameters": 5000, "source": "package"})
    train = {"examples": 10, "loss_tokens": 400, "input_tokens": 800}
    held_out = {"examples": 4, "loss_tokens": 50, "input_tokens": 100}
    manifest("results/corpus/c/dataset", {"splits": {"train": train, "evaluation": held_out}})
    return tmp_path


def manifest(where: str, facts: dict) -> None:
    path = Path(where) / "manifest.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts | {"path": "."}))


def planned(stage: str, settings: dict, record: str | None = None, experiment: str | None = "x", **inputs: str) -> PlannedJob:
    named = {name: f"results/{path}/manifest.json" for name, path in inputs.items() if name not in ("part", "parts")}
    split = {name: value for name, value in inputs.items() if name in ("part", "parts")}
    return PlannedJob(stage, stage, "test", experiment, settings, named, record or f"results/x/stages/{stage}.json", **split)


def training(budget: int, **more) -> dict:
    block = {"token_budget": budget, "batch_size": 2, "max_epochs": None, "dtype": "auto"} | more
    return {"training": block}


def answers(prompts: int, **more) -> dict:
    return {"synthetic_data": {"max_gen_examples": prompts, "generation": {"max_new_tokens": 10, "batch_size": 2}} | more}


STUDENT = {"student": "models/small/model", "corpus": "corpus/c/dataset"}
TEACHER = {"teacher": "models/large/model", "corpus": "corpus/c/dataset"}
EVALUATED = {"model": "models/small/model", **TEACHER}


def state(
    stage: str,
    mark: str,
    settings: dict | None,
    work: dict,
    joules: float | None,
    seconds: float,
    cpu: str = CPU,
    devices: tuple[str, ...] = (),
    **inputs: str,
) -> Path:
    """A finished stage in the state folder, its record made as the meter makes it; without settings one of an older version."""
    at = Path("results/state", stage, mark)
    named = {name: f"results/{path}/manifest.json" for name, path in inputs.items()}
    files = {path: file_identity(Path(path)) for path in named.values() if Path(path).is_file()}
    origin = {"fingerprint": mark, "cpu": cpu, "cpu_count": 4}
    start = {
        **{"stage": stage, "role": "student", "part": None, "parts": None, "experiment": "x", "pipeline": None},
        **{
            "energy": Energy(carbon_intensity_g_per_kwh=100.0, pue=1.5).model_dump(),
            "scope": "host",
            "idle": None,
            "attempt": mark,
            "time": 100.0 - seconds,
        },
        **{"host": "h", "pid": 1, "slurm": {}, "devices": [{"uuid": str(n), "name": d} for n, d in enumerate(devices)]},
        "provenance": origin | ({"settings": settings, "inputs": named, "files": files} if settings is not None else {}),
    }
    counts = {"work": work, "unit": "loss", "durable": {}, "resumed": None, "metrics": {}}
    figures = {name: figure(joules if name == "cpu" else None) for name in ("gpu", "cpu", "dram")}
    line = {"elapsed_s": seconds, "joules": figures, "work": counts, "saved_joules": None}
    ledger = LedgerWriter(at / "attempts" / "1.jsonl", start)
    ledger.append({"event": "end", **line, "outcome": "completed", "exit_code": 0, "signal": None})
    ledger.close()
    record = build_record(read_attempts(at / "attempts", stage), {})
    (at / "record.json").write_text(record.model_dump_json(by_alias=True))
    return at / "record.json"


def price(job: PlannedJob) -> ForecastRow:
    return module.row_of([job], module.Estimator([job], Path()), 0.0)


def task(stage: str, settings: dict, past: list[Past] | None = None, **inputs: str) -> Task:
    job = planned(stage, settings, **inputs)
    return Task(stage, job.settings, job.inputs, Artefacts([], Path()), past or [])


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
    (estimate,) = module.estimates([job], folder)
    assert estimate.wh == pytest.approx((row.kwh.low * 1000, row.kwh.high * 1000))
    assert estimate.minutes == pytest.approx((row.hours.low * 60, row.hours.high * 60))
    assert estimate.note == "history n=1"


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
    assert [estimate.wh for estimate in module.estimates(jobs, folder)] == [None, None]

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
    assert [*parts[::-1], merge] in groups
    estimator = module.Estimator([merge, *parts], folder)
    whole, half, gathered = (estimator.cost(group)[0].joules.mid for group in ([*parts, merge], parts[:1], [merge]))
    assert gathered == 450.0
    assert half == pytest.approx(450.0 + 100.0 / 2)
    assert whole == pytest.approx(half + half + gathered)
    assert [estimate.wh is not None for estimate in module.estimates([merge, *parts], folder)] == [True] * 3


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


# ---- forecast against outcome


def a_row(record: str, kwh: tuple[float, float, float] | None, made_at: float = 10.0, settings: str = "s") -> ForecastRow:
    bounds = None if kwh is None else Bounds(low=kwh[0], predicted=kwh[1], high=kwh[2])
    nothing = dict.fromkeys(("basis", "unit", "tokens", "hours", "grams", "reason"))
    own = {"stage": "x", "label": "x", "record": record, "jobs": {}, "settings": settings, "made_at": made_at, "notes": []}
    return ForecastRow.model_validate(nothing | own | {"kwh": bounds})


def test_forecast_against_outcome() -> None:
    rows = {r.record: r for r in (a_row("a", (1, 2, 3)), a_row("b", (1, 2, 3)), a_row("late", (1, 2, 3), made_at=99))}
    spent = {"A": 2.5, "B": 5.0, "L": 2.0, "N": 1.0}
    records = {
        name: StageRecord.model_validate(stage(kwh * 3.6e6, "data", name, start_time=10.0)) for name, kwh in spent.items()
    }
    found = compare_forecast(rows, {"A": "a", "B": "b", "L": "late", "N": "never"}, records)
    assert found is not None
    assert {stage: outcome.inside for stage, outcome in found.stages.items()} == {"A": True, "B": False}
    total = found.total
    assert (total.low, total.predicted, total.high, total.actual, total.inside) == (2.0, 4.0, 6.0, 7.5, False)
    records["B"].total_energy_joules = None
    unknown = compare_forecast(rows, {"A": "a", "B": "b"}, records)
    assert unknown is not None
    assert (unknown.stages["B"].inside, unknown.total.actual, unknown.total.inside) == (None, None, None)
    assert compare_forecast(rows, {"N": "never"}, records) is None


def test_a_forecast_holds_for_its_settings_only(tmp_path: Path) -> None:
    path = tmp_path / "forecast.json"
    assert read_forecast(str(path), {}) == {}
    total = {"kwh": None, "hours": None, "grams": None, "unpriced": []}
    rows = [a_row("a", (1, 2, 3)), a_row("b", (1, 2, 3)), a_row("unpriced", None)]
    content = Forecast.model_validate(
        {
            "made_at": 1,
            "arguments": [],
            "hardware": "",
            "rows": rows,
            "total": total,
            "earlier": [a_row("c", (1, 2, 3))],
            "notes": [],
        }
    )
    path.write_text(content.model_dump_json(by_alias=True))
    assert set(read_forecast(str(path), {"a": "s", "b": "other"})) == {"a", "c"}
    path.write_text("{}")
    with pytest.raises(ForecastError, match="is not a forecast/1: delete it"):
        read_forecast(str(path), {})
