"""The forecast's arithmetic against numbers worked out by hand."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest

from tests.helpers.summaries import stage
from workflow_scripts.accounting.model import Bounds, Forecast, ForecastRow
from workflow_scripts.accounting.outcome import ForecastError, compare_forecast, read_forecast
from workflow_scripts.energy.model import StageRecord
from workflow_scripts.estimate import forecast as module
from workflow_scripts.estimate.artefacts import Artefacts, UnpricedError, count_parameters
from workflow_scripts.estimate.device import Target, device
from workflow_scripts.estimate.history import Past, read_history
from workflow_scripts.estimate.pricing import Device, Range, Sample, fixed_joules, from_flops, from_history
from workflow_scripts.estimate.work import done, expected
from workflow_scripts.plan.dry_run import PlannedJob, parse

CPU = "Some CPU"
OPTIONS = {"total_energy_policy": "measured", "carbon_intensity_g_per_kwh": 100.0, "region": None, "country_iso_code": "CAN"}
HERE = Target((CPU, 4, ()), [], None, "test")


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


def test_flops_and_power() -> None:
    """1e12 FLOPs at 1e9, 1e10, 1e11 FLOP/s take 1000, 100, 10 s; a process adds 30, 8, 2 s; at 50 W."""
    rate = Device(Range(1e9, 1e10, 1e11), Range.exactly(50.0), "test")
    found = from_flops(Range.exactly(1e12), 1, 1, rate)
    assert found.seconds == Range(12.0, 108.0, 1030.0)
    assert found.joules == Range(600.0, 5400.0, 51500.0)
    twice = from_flops(Range.exactly(1e12), 1, 2, rate)
    assert twice.seconds.mid == pytest.approx(58.0)
    assert twice.joules.mid == pytest.approx(58.0 * 100)


def test_a_gpu_by_its_power_limit_and_peak() -> None:
    where = Target(
        (CPU, 8, ("NVIDIA H100 80GB HBM3",)), [{"name": "NVIDIA H100 80GB HBM3", "power_limit_watts": 700.0}], 60, "x"
    )
    found = device(where, [], generates=False)
    assert found.watts == Range.exactly(760.0)
    assert found.flops.mid == pytest.approx(0.2 * 9.9e14)
    unknown = Target((CPU, 8, ("Toy GPU",)), [{"name": "Toy GPU", "power_limit_watts": 700.0}], None, "x")
    with pytest.raises(UnpricedError, match="peak FLOP/s of Toy GPU is not known"):
        device(unknown, [], generates=False)


# ---- jobs, manifests and records


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a student of 1000 parameters and a corpus of 2 input tokens per loss token."""
    monkeypatch.chdir(tmp_path)
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
    os.utime(path, (0, 0))


def planned(stage: str, settings: dict, meter: dict | None = None, **inputs: str) -> PlannedJob:
    words = ["python", "-m", "workflow_scripts.energy.meter", f"--stage={stage}", "--role=x", "--state=results/state"]
    words += [f"--options={json.dumps(OPTIONS | {'pue': 1.5})}", "--codecarbon=results/x/codecarbon", "--log", "l"]
    for name, value in ({"record": "results/x/stages/record.json"} | (meter or {})).items():
        words += [f"--{name}", value]
    words += ["--", "python", "-m", f"workflow_scripts.stages.{stage}", "--settings", json.dumps(settings)]
    for name, path in inputs.items():
        words += [f"--{name}", f"results/{path}/manifest.json"]
    return parse(stage, "test", shlex.join([*words, "--out", "results/x/final_model/manifest.json"]))


def training(budget: int, **more) -> dict:
    return {"pipeline": "baseline", "training": {"token_budget": budget, "max_epochs": None, "dtype": "auto"} | more}


STUDENT = {"student": "models/small/model", "corpus": "corpus/c/dataset"}


def state(
    stage: str, mark: str, settings: dict, work: dict, joules: float, seconds: float, cpu: str = CPU, **inputs: str
) -> None:
    """A finished stage in the state folder."""
    at = Path("results/state", stage, mark)
    (at / "attempts").mkdir(parents=True)
    named = [word for name, path in inputs.items() for word in (f"--{name}", f"results/{path}/manifest.json")]
    command = ["python", "-m", f"workflow_scripts.stages.{stage}", "--settings", json.dumps(settings), *named]
    (at / "attempts" / "1.jsonl").write_text(json.dumps({"command": command, "energy": OPTIONS}) + "\n")
    counts = dict.fromkeys(("loss", "input", "generated", "padded", "discarded", "examples", "steps")) | work
    content = {
        "total_energy_joules": joules,
        "useful_j": joules,
        "duration_seconds": seconds,
        "end_time": 100.0,
        "status": "complete",
        "parts": None,
        "work": counts,
        "devices": [],
        "provenance": {"cpu": cpu, "cpu_count": 4, "fingerprint": mark},
    }
    (at / "record.json").write_text(json.dumps(content))


def price(job: PlannedJob) -> ForecastRow:
    history, _ = read_history(Path("results"))
    return module.price([job], Artefacts([job]), history, HERE, 0.0)


def test_expected_work_of_each_stage(folder: Path) -> None:
    """Student 1000, teacher 5000 parameters; train split 800 input and 400 loss tokens, so prompts of 40."""
    work = expected(planned("student_train", training(600), **STUDENT), Artefacts([]), [])
    assert work.amount == Range.exactly(6 * 1000 * 600 * 2)
    assert work.tokens == Range.exactly(600.0)
    short = expected(planned("student_train", training(600, max_epochs=1), **STUDENT), Artefacts([]), [])
    assert short.tokens == Range.exactly(400.0)
    teacher = {"teacher": "models/large/model", "corpus": "corpus/c/dataset"}
    cache = expected(planned("logit_caching", {}, **teacher), Artefacts([]), [])
    assert cache.amount == Range.exactly(2 * 5000 * 800)
    generation = {"max_new_tokens": 10}
    answers = expected(
        planned(
            "synthetic_generation",
            {"data": {"use_existing": False, "max_gen_examples": 6, "generation": generation}},
            **teacher,
        ),
        Artefacts([]),
        [],
    )
    assert answers.tokens == Range.exactly(60.0) * Range(0.2, 0.6, 1.0)
    assert answers.amount.high == pytest.approx(2 * 5000 * (6 * 40 + 60))


def test_past_answers_tell_how_much_of_the_limit_is_used(folder: Path) -> None:
    settings = {"data": {"use_existing": False, "max_gen_examples": 6, "generation": {"max_new_tokens": 10}}}
    teacher = {"teacher": "models/large/model", "corpus": "corpus/c/dataset"}
    work = {"input": 240, "generated": 45, "examples": 6}
    state("synthetic_generation", "a", settings, work, 1000.0, 10.0, **teacher)
    history, _ = read_history(Path("results"))
    found = expected(planned("synthetic_generation", settings, **teacher), Artefacts([]), history)
    assert found.tokens == Range.exactly(45.0)  # 45 of 6 x 10
    assert found.amount.mid == pytest.approx(done(history[0], Artefacts([])))


def test_joules_scale_with_tokens_and_parameters(folder: Path) -> None:
    """Records of 100 J + 1 mJ per 6 FLOPs: 700 and 1300 J for 300 and 600 tokens (twice as many inputs) of 1000 parameters.

    900 tokens of the model of 5000 parameters: 100 + 900 x 2 x 5000 x 1e-3 = 9100 J.
    """
    for mark, tokens in (("a", 300), ("b", 600)):
        state(
            "student_train", mark, training(tokens), {"loss": tokens, "input": 2 * tokens}, 100 + 2.0 * tokens, 10.0, **STUDENT
        )
    row = price(planned("student_train", training(900), student="models/large/model", corpus="corpus/c/dataset"))
    assert row.basis == "history n=2"
    assert row.kwh is not None
    assert row.kwh.predicted == pytest.approx(9100 / 3.6e6)
    assert row.grams is not None
    assert row.grams.predicted == pytest.approx(9100 / 3.6e6 * 100 * 1.5)
    assert row.tokens == Bounds(low=900, predicted=900, high=900)


def test_the_outcome_of_the_same_training_is_inside(folder: Path) -> None:
    state("student_train", "a", training(300), {"loss": 300, "input": 600}, 5000.0, 50.0, **STUDENT)
    row = price(planned("student_train", training(300), **STUDENT))
    assert row.kwh is not None
    assert row.kwh.predicted == pytest.approx(5000 / 3.6e6)
    assert row.kwh.low < 5000 / 3.6e6 < row.kwh.high
    assert row.hours is not None
    assert row.hours.predicted == pytest.approx(50 / 3600)


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


def test_records_of_other_hardware_are_named_and_widen_the_range(folder: Path) -> None:
    state("student_train", "a", training(300), {"loss": 300, "input": 600}, 5000.0, 50.0, cpu="Other CPU", **STUDENT)
    row = price(planned("student_train", training(300), **STUDENT))
    assert row.notes == ["only records of other hardware (Other CPU x 4): range x 2"]
    assert row.kwh is not None
    assert row.kwh.high == pytest.approx(5000 * 1.3 * 2 / 3.6e6)


def test_a_training_made_another_way_is_a_doubt_and_one_alike_is_preferred(folder: Path) -> None:
    plain, saving = (training(300, gradient_checkpointing=way, eval_steps=None) for way in (False, True))
    state("student_train", "a", plain, {"loss": 300, "input": 600}, 5000.0, 50.0, **STUDENT)
    row = price(planned("student_train", saving, **STUDENT))
    assert row.notes == ["only records of training.gradient_checkpointing False: range x 2"]
    state("student_train", "b", saving, {"loss": 300, "input": 600}, 8000.0, 80.0, **STUDENT)
    row = price(planned("student_train", saving, **STUDENT))
    assert (row.notes, row.basis) == ([], "history n=1")
    assert row.kwh is not None and row.kwh.predicted == pytest.approx(8000 / 3.6e6)


def test_tasks_of_the_harness_are_priced_by_an_evaluation_that_ran_them_only(folder: Path) -> None:
    plain = {"evaluation": {"generation_prompts": 2, "max_new_tokens": 5, "lm_eval_tasks": [], "lm_eval_limit": None}}
    tasks = {"evaluation": plain["evaluation"] | {"lm_eval_tasks": ["arc_easy"]}}
    inputs = {"model": "models/small/model", "teacher": "models/large/model", "corpus": "corpus/c/dataset"}
    state("evaluation", "a", plain, {"input": 100, "generated": 6}, 1000.0, 10.0, **inputs)
    row = price(planned("evaluation", tasks, **inputs))
    assert row.kwh is None and "evaluation.lm_eval_tasks is not known before" in (row.reason or "")
    state("evaluation", "b", tasks, {"input": 100, "generated": 6}, 9000.0, 90.0, **inputs)
    row = price(planned("evaluation", tasks, **inputs))
    assert row.kwh is not None and row.kwh.predicted == pytest.approx(9000 / 3.6e6)


def test_without_history_the_flops_decide(folder: Path) -> None:
    """6 x 1000 x 600 x 2 FLOPs are nothing: 8 s of imports at the power of the other stages here, 1000 J in 10 s."""
    state("preprocess", "p", {"train_examples": 1, "evaluation_examples": 1}, {}, 1000.0, 10.0)
    row = price(planned("student_train", training(600), **STUDENT))
    assert row.basis == "FLOPs"
    assert row.kwh is not None
    assert row.kwh.predicted == pytest.approx(8 * 100 / 3.6e6, rel=1e-3)
    assert "100 W of 1 other stage(s)" in row.notes[0]
    assert row.kwh.high / row.kwh.low > 10


def test_what_cannot_be_priced_is_unknown_with_its_reason_and_named_in_the_total(folder: Path) -> None:
    meters = [{"record": f"results/{name}/stages/record.json"} for name in ("a", "b")]
    jobs = [
        planned("preprocess", {"train_examples": 1, "evaluation_examples": 1}, meters[0]),
        planned("student_train", training(600), meters[1], student="models/absent/model", corpus="corpus/c/dataset"),
    ]
    found = module.forecast(jobs, [], folder / "forecast.json", 0.0)
    assert [row.kwh for row in found.rows] == [None, None]
    assert found.rows[0].reason == "there is no record of such a stage with a figure, and its work is not counted in FLOPs"
    assert "the parameters of its model are not known" in (found.rows[1].reason or "")
    assert found.total.kwh is None
    assert found.total.unpriced == ["preprocess a", "student_train b"]
    assert any("total" in line and "unknown" in line for line in module.render(found))


def test_records_without_their_settings_are_named_not_used(folder: Path) -> None:
    path = Path("results/old/stages/student_train.json")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"provenance": {"fingerprint": "gone"}}))
    history, notes = read_history(Path("results"))
    assert history == []
    assert "1 record(s) under results are left out" in notes[0]


def test_a_model_that_was_made_again_since_is_a_doubt(folder: Path) -> None:
    settings = {"evaluation": {"generation_prompts": 2, "max_new_tokens": 5}, "dtype": "auto"}
    inputs = {"model": "models/small/model", "teacher": "models/large/model", "corpus": "corpus/c/dataset"}
    state("evaluation", "a", settings, {"input": 100, "generated": 6}, 1000.0, 10.0, **inputs)
    assert price(planned("evaluation", settings, **inputs)).notes == []
    os.utime("results/models/small/model/manifest.json", (200, 200))
    assert "a model that was made again since" in price(planned("evaluation", settings, **inputs)).notes[0]


def test_parts_and_merge_are_one_stage(folder: Path) -> None:
    parts = [{"part": f"{n}-of-2", "record": f"results/x/parts/{n}.record.json"} for n in (1, 2)]
    merge = {"parts": "2", "record": "results/x/stages/logit_caching.json"}
    jobs = [planned("logit_caching", {}, meter) for meter in (merge, *parts)]
    groups = module.stages([*jobs, planned("evaluation", {})])
    assert [len(group) for group in groups] == [3, 1]
    assert groups[0][-1].meter["record"] == ["results/x/stages/logit_caching.json"]


def test_parameters_from_a_config_alone(tmp_path: Path) -> None:
    """Llama, V = 97, d = 32, tied: 97 x 32 + 32, and per layer q, o 32 x 32, k, v 32 x 16, three 32 x 48, two norms of 32."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    content = {"model_type": "llama", "vocab_size": 97, "num_hidden_layers": 5, "tie_word_embeddings": True, **shape}
    (tmp_path / "config.json").write_text(json.dumps(content))
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32
    assert count_parameters(tmp_path) == 97 * 32 + 32 + 5 * layer
    assert count_parameters(tmp_path, layers=2) == 97 * 32 + 32 + 2 * layer


def test_wasted_energy_is_not_predicted() -> None:
    record = {"total_energy_joules": 100.0, "useful_j": 75.0, "duration_seconds": 40.0, "status": "complete"}
    assert Past("s", {}, {}, record, {}, None).cost() == (75.0, 30.0)


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
