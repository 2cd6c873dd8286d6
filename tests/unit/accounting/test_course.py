"""Power over time, loss over joules and joules per served token, from traces and ledgers written by hand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.helpers.summaries import stage
from workflow_scripts.accounting.quality import Evaluation
from workflow_scripts.accounting.traces import (
    TraceError,
    energy_curve,
    intermediate_evaluations,
    joules_between,
    locate,
    loss_curve,
    power_curve,
)
from workflow_scripts.accounting.traces import deployed_cost as deployed
from workflow_scripts.distill.work import WorkCallback
from workflow_scripts.energy.model import Metrics, Phase, StageRecord
from workflow_scripts.progress import Progress
from workflow_scripts.report import figures_course

ROWS = "elapsed_s,gpu_w,gpu_j,cpu_j,dram_j,tokens\n1.0,,,100,,\n2.0,,,200,40,5\n4.0,,,400,80,9\n10.0,,,1600,200,9\n"


def record(folder: Path, charged: dict[str, float | None], rows: str = ROWS, ident: str = "a1") -> StageRecord:
    """A record with one attempt, whose trace and empty ledger lie under `folder`."""
    trace = folder / "state" / "traces" / f"{ident}.csv.gz"
    trace.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(trace, "wt") as handle:
        handle.write(rows)
    (folder / "state" / "attempts").mkdir(exist_ok=True)
    known = {name: value for name, value in charged.items() if value is not None}
    total = sum(known.values())
    parts = [(name, "RAPL", 5.0, value) for name, value in known.items()]
    made = stage(total, "student", ident, parts=parts, start_time=500.0)
    trace = f"state/traces/{ident}.csv.gz"
    made["attempts"][0] |= {"id": ident, "trace": trace, "joules": charged, "total_j": total, "end_time": 510.0}
    return StageRecord.model_validate(made)


def deployed_cost(evaluation: dict | None, record: StageRecord | None, near: Path) -> dict:
    return deployed(Evaluation.model_validate(evaluation or {}), record, near).model_dump()


def test_the_area_under_the_power_is_the_bill(tmp_path) -> None:
    """The first 2 s, when dram had no figure, count at their mean (240 J / 2 s); then 80, then 220 W."""
    made = record(tmp_path, {"gpu": None, "cpu": 1600.0, "dram": 200.0})
    curve = energy_curve(made, made.attempts[0], tmp_path / "x")
    assert curve["joules"].tolist() == [0, 240, 480, 1800]
    edges, watts = power_curve(curve)
    assert edges.tolist() == [0, 2, 4, 6, 8, 10]
    assert watts.tolist() == pytest.approx([120, 120, 220, 220, 220])
    assert joules_between(curve, 3.0, 5.0) == pytest.approx(120 + 220)
    assert joules_between(curve, 9.0, 11.0) is None


def test_a_share_of_the_host_scales_its_trace(tmp_path) -> None:
    """The job is charged a quarter of the host's cpu and half of its dram."""
    made = record(tmp_path, {"gpu": None, "cpu": 400.0, "dram": 100.0})
    curve = energy_curve(made, made.attempts[0], tmp_path / "x")
    assert curve["joules"].tolist() == pytest.approx([0, 50 + 20, 100 + 40, 500])


def test_traces_that_are_gone_or_damaged_are_named(tmp_path) -> None:
    made = record(tmp_path, {"cpu": 1600.0})
    path = tmp_path / "state" / "traces" / "a1.csv.gz"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(TraceError, match="a1.csv.gz cannot be read"):
        energy_curve(made, made.attempts[0], tmp_path / "x")
    path.with_suffix("").write_text(ROWS + "12.0,,")
    path.unlink()
    assert locate("state/traces/a1.csv.gz", tmp_path / "x") == path.with_suffix(""), "a killed meter has not compressed it"
    assert energy_curve(made, made.attempts[0], tmp_path / "x")["joules"].iloc[-1] == 1600
    path.with_suffix("").unlink()
    with pytest.raises(TraceError, match="is not there any more"):
        energy_curve(made, made.attempts[0], tmp_path / "x")


def ledger(folder: Path, ident: str, *lines: tuple[float, dict]) -> None:
    text = [json.dumps({"event": "start"})]
    text += [json.dumps({"event": "tick", "joules": {"cpu": {"joules": j}}, "work": work}) for j, work in lines]
    (folder / "state" / "attempts" / f"{ident}.jsonl").write_text("\n".join([*text, '{"event": "ti']))


def test_loss_over_joules_of_a_resumed_training(tmp_path) -> None:
    """The second attempt begins where the first one's 300 J end, and says the loss of step 2 again."""
    made = record(tmp_path, {"cpu": 300.0}, ident="a1")
    second = record(tmp_path, {"cpu": 200.0}, ident="a2")
    made.attempts += second.attempts
    measured = [{"metrics": {"loss": 5.0}, "measured": {"loss": 1}}, {"metrics": {"loss": 5.0}, "measured": {"loss": 2}}]
    ledger(
        tmp_path,
        "a1",
        (50.0, {"metrics": {}}),
        (100.0, measured[0]),
        (150.0, measured[0]),
        (200.0, measured[1]),
        (300.0, measured[1]),
    )
    ledger(tmp_path, "a2", (80.0, measured[1]), (200.0, {"metrics": {"loss": 4.0}, "measured": {"loss": 3}}))
    assert loss_curve(made, "loss", tmp_path / "x") == [(100, 5.0), (200, 5.0), (380, 5.0), (500, 4.0)]
    assert loss_curve(made, "kl", tmp_path / "x") == []


def evaluated(attempt: str, *evaluations: tuple[int, float, float, float]) -> Metrics:
    keys = ("step", "eval_loss", "start_s", "end_s")
    of = {"start_time": 500.0, "end_time": 501.0, "attempt": attempt}
    return Metrics.model_validate({"evaluations": [of | dict(zip(keys, entry, strict=True)) for entry in evaluations]})


def test_intermediate_evaluations_are_taken_out_of_the_joules_of_their_points(tmp_path) -> None:
    """The trace has 120 W to 4 s and 220 W to 10 s; another attempt of 1100 J went before."""
    made = record(tmp_path, {"cpu": 1600.0, "dram": 200.0}, ident="a2")
    before = record(tmp_path, {"cpu": 1000.0, "dram": 100.0}, ident="a1").attempts[0]
    made.attempts = [before.model_copy(update={"start_time": 100.0, "end_time": 110.0}), made.attempts[0]]
    made.metrics = evaluated("a2", (2, 5.0, 2.0, 3.0), (4, 4.0, 5.0, 7.0))
    found = intermediate_evaluations(made, tmp_path / "x")
    assert found is not None
    assert (found.count, found.seconds, found.reason) == (2, 3.0, None)
    assert found.joules == pytest.approx(120 + 440)
    first, second = 1100 + 240, 1100 + 480 + 220 - 120
    assert [p.training_joules for p in found.points] == pytest.approx([first, second])
    drawn = figures_course._points(made, "eval_loss", tmp_path / "x")
    assert [x for x, _ in drawn] == pytest.approx([first, second]) and [y for _, y in drawn] == [5.0, 4.0]


def test_a_point_has_the_joules_of_the_work_so_far(tmp_path) -> None:
    """The meter saw 1,000 J of work, the record has 900 of them; in the evaluation from 4 to 8 s they stand still at 400."""
    rows = "elapsed_s,gpu_w,gpu_j,cpu_j,dram_j,tokens,work_j\n1,,,100,,,0\n4,,,600,,,400\n8,,,1000,,,400\n10,,,1800,,,1000\n"
    made = record(tmp_path, {"cpu": 1800.0}, rows)
    made.metrics = evaluated("a1", (2, 5.0, 4.0, 8.0))
    alone = intermediate_evaluations(made, tmp_path / "x")
    told = made.model_copy(update={"phases": {"work": Phase(joules=900.0, seconds=5.0, tokens=9)}})
    found = intermediate_evaluations(told, tmp_path / "x")
    assert alone is not None and alone.points[0].work_joules is None, "the record does not tell it apart"
    assert found is not None and found.points[0].work_joules == pytest.approx(360)
    first = made.attempts[0].model_copy(update={"id": "a0", "trace": None})
    again = intermediate_evaluations(told.model_copy(update={"attempts": [first, *made.attempts]}), tmp_path / "x")
    assert again is not None and again.reason is None and again.points[0].work_joules is None, "several attempts"


def test_what_an_attempt_lost_is_not_in_the_joules_of_the_next_one_s_points(tmp_path) -> None:
    made = record(tmp_path, {"cpu": 1600.0, "dram": 200.0}, ident="a2")
    before = record(tmp_path, {"cpu": 1000.0, "dram": 100.0}, ident="a1").attempts[0]
    made.attempts = [before.model_copy(update={"useful_j": 300.0, "wasted_j": 800.0}), made.attempts[0]]
    made.metrics = evaluated("a2", (2, 5.0, 2.0, 3.0))
    found = intermediate_evaluations(made, tmp_path / "x")
    assert found is not None and found.points[0].training_joules == pytest.approx(300 + 240)


def test_a_suspension_is_not_in_the_course(tmp_path) -> None:
    """From 4 to 104 s the job stood still, which cost the host 2,000 J: the attempt is charged the 1,000 J of its work."""
    rows = "elapsed_s,gpu_w,gpu_j,cpu_j,dram_j,tokens\n2,,,200,,\n4,,,400,,\n104,,,2400,,\n106,,,2700,,\n107,,,3000,,\n"
    made = record(tmp_path, {"cpu": 1000.0}, rows)
    attempt = made.attempts[0].model_copy(update={"end_time": 607.0, "duration_seconds": 7.0})
    curve = energy_curve(made, attempt, tmp_path / "x")
    assert curve["joules"].tolist() == pytest.approx([0, 200, 400, 400, 700, 1000])


def test_an_evaluation_without_a_trace_has_no_joules_and_a_reason(tmp_path) -> None:
    made = record(tmp_path, {"cpu": 1600.0, "dram": 200.0})
    assert intermediate_evaluations(made, tmp_path / "x") is None, "no evaluations"
    made.metrics = evaluated("a1", (2, 5.0, 2.0, 3.0), (4, 4.0, 100.0, 101.0))
    found = intermediate_evaluations(made, tmp_path / "x")
    assert found is not None and found.joules is None
    assert found.reason == "no power trace covers the evaluation at step 4"
    with pytest.raises(TraceError, match="held-out loss: no power trace covers the evaluation at step 4"):
        figures_course._points(made, "eval_loss", tmp_path / "x")


def test_a_ledger_of_one_host_stands_for_all(tmp_path) -> None:
    made = record(tmp_path, {"cpu": 600.0})
    ledger(tmp_path, "a1", (100.0, {"metrics": {"loss": 5.0}}), (300.0, {"metrics": {"loss": 5.0}}))
    assert loss_curve(made, "loss", tmp_path / "x") == [(200, 5.0)], "an older ledger: a point where the value changes"


def test_a_logged_loss_is_in_the_progress_file_at_once_with_its_step(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("STAGE_PROGRESS", str(tmp_path / "progress.json"))
    progress = Progress("loss")
    progress.steps = 3
    callback = WorkCallback.__new__(WorkCallback)
    callback.progress, callback._listener = progress, None
    callback.on_log(None, None, None, logs={"loss": 2.0, "epoch": 1.0})
    content = json.loads((tmp_path / "progress.json").read_text())
    assert (content["metrics"], content["measured"]) == ({"loss": 2.0}, {"loss": 3})


def test_joules_per_served_token_come_from_the_seconds_of_generation(tmp_path) -> None:
    """Seconds 3 to 5 of the trace have 120 J and 220 J, for 17 tokens; cpu and dram share it as in the record, 8 : 1."""
    made = record(tmp_path, {"cpu": 1600.0, "dram": 200.0})
    generation = {"generated_tokens": 17, "seconds": 2.0, "start_s": 3.0}
    cost = deployed_cost({"generation": generation}, made, tmp_path / "x")
    assert (cost["joules_per_token"], cost["watts"], cost["method"]) == (pytest.approx(20), pytest.approx(170), "trace")
    assert [part["joules_per_token"] for part in cost["components"]] == pytest.approx([20 * 8 / 9, 20 / 9])
    without = deployed_cost({"generation": {**generation, "start_s": None}}, made, tmp_path / "x")
    assert without["joules_per_token"] == pytest.approx(1800 / 10 * 2 / 17)
    assert without["method"] == "mean power of the evaluation"


def test_generation_at_the_very_end_and_before_the_first_sample_are_on_the_trace(tmp_path) -> None:
    """Seconds 9 to 10 have 220 W; 0.5 to 1.5 lie before dram's first figure, at the mean of the head, 120 W."""
    made = record(tmp_path, {"cpu": 1600.0, "dram": 200.0})
    for start, joules in ((9.0, 220.0), (0.5, 120.0)):
        cost = deployed_cost({"generation": {"generated_tokens": 10, "seconds": 1.0, "start_s": start}}, made, tmp_path / "x")
        assert (cost["joules_per_token"], cost["method"]) == (pytest.approx(joules / 10), "trace")


def test_an_evaluation_shorter_than_the_samplers_start_has_no_cost_but_a_reason(tmp_path) -> None:
    made = record(tmp_path, {"cpu": None, "dram": None}).model_copy(update={"total_energy_joules": None})
    cost = deployed_cost({"generation": {"generated_tokens": 10, "seconds": 0.1, "start_s": 0.0}}, made, tmp_path / "x")
    assert (cost["joules_per_token"], cost["reason"]) == (None, "the evaluation has no energy figure")


def test_what_was_not_generated_has_no_cost_and_a_reason(tmp_path) -> None:
    made = record(tmp_path, {"cpu": 1600.0})
    for evaluation, reason in (
        (None, "the evaluation generated no text"),
        ({"generation": {"prompts": 0, "reason": "no held-out row has a user turn"}}, "no held-out row has a user turn"),
    ):
        cost = deployed_cost(evaluation, made, tmp_path)
        assert (cost["joules_per_token"], cost["reason"]) == (None, reason)
    generated = {"generation": {"generated_tokens": 5, "seconds": 1.0}}
    assert deployed_cost(generated, None, tmp_path)["reason"] == "the evaluation has no energy figure"
