"""A training that ends when its energy is spent, by a file and by counters that the test sets."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.helpers.meter_bench import Bench, python
from tests.helpers.tiny_training import train
from workflow_scripts.distill import checkpoints
from workflow_scripts.distill.arguments import OptimizerMissing, check_optimizer
from workflow_scripts.distill.budget import EnergyBudget, EnergyUnknown

KWH = 1 / 3.6e6  # one joule


@pytest.fixture
def tell(tmp_path: Path, monkeypatch):
    """Writes what the meter would."""
    path = tmp_path / "energy.json"
    monkeypatch.setenv("STAGE_ENERGY", str(path))

    def write(joules: float | None, reason: str | None = None, age: float = 0.0, every: float = 2.0, work: float = 0.0) -> None:
        content = {"joules": joules, "joules_by_component": {}, "reason": reason, "time": time.time() - age}
        content["work_joules"] = work
        path.write_text(json.dumps(content | {"every_seconds": every}))

    write(0.0)
    return write


def test_the_training_ends_at_the_step_that_spends_the_budget(tmp_path: Path, tell) -> None:
    """100 J a step, 300 J to spend: the third of five steps is the last, with a checkpoint and an evaluation."""
    done = train(
        tmp_path / "run", each_step=lambda step, _: tell(100.0 * step), energy_budget_kwh=300 * KWH, held_out=3, eval_steps=50
    )
    assert done.progress.steps == len(done.losses) == 3
    assert done.metrics["ended_by"] == "energy_budget_kwh"
    assert checkpoints.newest(tmp_path / "run") == tmp_path / "run" / "checkpoint-3"
    assert done.progress.durable["steps"] == 3
    assert [entry["step"] for entry in done.metrics["evaluations"]] == [3]


def test_evaluations_at_equal_joules_stand_where_the_work_phase_has_used_them(tmp_path: Path, tell) -> None:
    """Every 150 J of work, 100 J a step: after the steps 2, 3 and 5; once where several are passed at once."""

    def used(step: int, _: object) -> None:
        tell(1e6, work=100.0 * step)

    asked = {"held_out": 3, "eval_joules": 150.0}
    done = train(tmp_path / "run", each_step=used, **asked)
    assert [entry["step"] for entry in done.metrics["evaluations"]] == [2, 3, 5]
    plain = train(tmp_path / "plain", held_out=3)
    assert plain.losses == done.losses and "evaluations" not in plain.metrics
    seldom = train(tmp_path / "seldom", each_step=lambda step, _: tell(1e6, work=1e3 * (step > 3)), **asked)
    assert [entry["step"] for entry in seldom.metrics["evaluations"]] == [4, 5], "the last step is always evaluated"


def test_evaluations_by_joules_end_with_a_warning_where_the_meter_is_lost(tmp_path: Path, tell) -> None:
    def used(step: int, _: object) -> None:
        tell(1e6, work=100.0 * step, age=0.0 if step < 3 else 61.0)

    done = train(tmp_path / "run", each_step=used, held_out=3, eval_joules=90.0)
    assert [entry["step"] for entry in done.metrics["evaluations"]] == [1, 2, 5]
    (warning,) = done.progress.warnings
    assert warning.startswith("no further evaluation on the way: training.eval_joules = 90, but")


def test_evaluations_by_joules_need_a_meter(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("STAGE_ENERGY", raising=False)
    with pytest.raises(
        EnergyUnknown, match=r"eval_joules = 50, but .* without the energy meter\): set it to null and set training.ev"
    ):
        train(tmp_path / "run", held_out=3, eval_joules=50.0)


def test_whichever_budget_comes_first_is_named(tmp_path: Path, tell) -> None:
    def used(step: int, _: object) -> None:
        tell(100.0 * step)

    ample = train(tmp_path / "ample", each_step=used, energy_budget_kwh=501 * KWH)
    assert (ample.progress.steps, ample.metrics["ended_by"]) == (5, "token_budget")
    both = train(tmp_path / "both", each_step=used, energy_budget_kwh=500 * KWH)
    assert (both.progress.steps, both.metrics["ended_by"]) == (5, "token_budget"), "at the same step nothing was cut"
    epochs = train(tmp_path / "epochs", each_step=used, energy_budget_kwh=501 * KWH, max_epochs=1)
    assert (epochs.progress.steps, epochs.metrics["ended_by"]) == (2, "max_epochs")
    assert ample.losses[0] == epochs.losses[0]


def test_energy_that_becomes_unknown_ends_in_a_checkpoint_and_an_error(tmp_path: Path, tell) -> None:
    def lose(step: int, _: object) -> None:
        tell(None, "gpu: the driver is gone") if step == 2 else tell(1.0)

    with pytest.raises(
        EnergyUnknown, match=r"energy_budget_kwh = 0.1, but .* not known \(gpu: the driver is gone\): set it to null"
    ):
        train(tmp_path / "run", each_step=lose, energy_budget_kwh=0.1)
    assert checkpoints.newest(tmp_path / "run") == tmp_path / "run" / "checkpoint-2"
    tell(1.0)
    assert train(tmp_path / "run", energy_budget_kwh=0.1).progress.resumed["steps"] == 2


def test_an_old_figure_is_no_figure(tell) -> None:
    tell(1.0, age=59)
    assert EnergyBudget(1.0).spent() is False
    tell(1.0, age=61)
    with pytest.raises(EnergyUnknown, match="last figure is 61 s old"):
        EnergyBudget(1.0).spent()


def test_energy_that_is_unknown_at_the_last_step_costs_no_finished_training(tmp_path: Path, tell) -> None:
    def lose(step: int, _: object) -> None:
        tell(None, "gpu: the driver is gone") if step == 5 else tell(1.0)

    done = train(tmp_path / "run", each_step=lose, energy_budget_kwh=0.1)
    assert (done.progress.steps, done.metrics["ended_by"]) == (5, "token_budget")
    assert len(done.progress.warnings) == 1 and "the driver is gone" in done.progress.warnings[0]


def test_a_file_that_cannot_be_read_leaves_the_last_figure_until_it_is_old(tmp_path: Path, tell, monkeypatch) -> None:
    path, now = tmp_path / "energy.json", time.time()
    monkeypatch.setattr("workflow_scripts.distill.budget.time.time", lambda: now)
    budget = EnergyBudget(150 * KWH)
    tell(100.0)
    budget.wait_for_meter()
    path.unlink()
    assert budget.spent() is False
    tell(200.0)
    assert budget.spent() is True
    path.write_text('{"joules": 2')
    assert budget.spent() is True
    now += 61
    with pytest.raises(EnergyUnknown, match="last figure is 61 s old"):
        budget.spent()


@pytest.mark.parametrize(("flush", "told"), [(60.0, True), (600.0, False), (1.0, True)])
def test_the_first_figure_is_waited_for_two_flush_periods_and_a_minute(tmp_path, tell, monkeypatch, flush, told) -> None:
    """Told by the meter's file, or while that does not exist by the options that the meter gave the stage."""
    slept = []
    monkeypatch.setattr("workflow_scripts.distill.budget.time.sleep", slept.append)
    monkeypatch.setattr("workflow_scripts.distill.budget.time.monotonic", lambda: 10.0 * len(slept))
    monkeypatch.setenv("METER_OPTIONS", json.dumps({"flush_seconds": flush}))
    tell(None, "not yet", every=flush)
    if not told:
        (tmp_path / "energy.json").unlink()
    with pytest.raises(EnergyUnknown, match="not yet" if told else "cannot be read"):
        EnergyBudget(1.0).wait_for_meter()
    assert 10.0 * (len(slept) - 1) == max(60.0, 2 * flush)


def test_without_a_meter_or_a_source_nothing_is_trained(tmp_path: Path, tell, monkeypatch) -> None:
    tell(None, "gpu: no GPU", every=0.1)
    with pytest.raises(EnergyUnknown, match="gpu: no GPU"):
        EnergyBudget(1.0).wait_for_meter(seconds=0.3)
    monkeypatch.delenv("STAGE_ENERGY")
    with pytest.raises(EnergyUnknown, match="runs without the energy meter"):
        train(tmp_path / "run", energy_budget_kwh=0.1)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


STAGE = """
import os, sys, time
from pathlib import Path
from tests.helpers.tiny_training import train
from workflow_scripts.progress import energy_so_far
counter = {counter!r}
def spend(step, callback):
    value = int(open(counter).read())
    open(counter + "x", "w").write(str(value + 40_000_000)); os.replace(counter + "x", counter)
    while (energy_so_far().joules or 0) < {before} + 40 * (step - {resumed}):
        time.sleep(0.02)
    if step == {die_at}:
        os._exit(9)
done = train(Path(os.environ["STAGE_STATE_DIR"]), each_step=spend, save_steps=1, energy_budget_kwh=150 / 3.6e6)
print("ended by", done.metrics["ended_by"], "after", done.progress.steps, "steps", flush=True)
"""


@pytest.mark.slow
def test_the_meter_tells_a_resumed_training_what_earlier_attempts_have_used(tmp_path: Path) -> None:
    """40 J a step, 150 J to spend. The first attempt dies in step 3 with 120 J used, 2 steps saved; 30 J are left."""
    bench = Bench(tmp_path)
    counter = str(bench.rapl / "intel-rapl:0" / "energy_uj")
    first = bench.run(*python(STAGE.format(counter=counter, before=0, resumed=0, die_at=3)))
    assert first.returncode == 9, first.stderr
    second = bench.run(*python(STAGE.format(counter=counter, before=120, resumed=2, die_at=0)))
    assert second.returncode == 0, second.stderr
    assert "ended by energy_budget_kwh after 3 steps" in (tmp_path / "log").read_text()
    assert bench.record()["total_energy_joules"] == pytest.approx(160.0)
    assert bench.record()["work"]["steps"] == 3
    assert bench.record()["metrics"]["ended_by"] == "energy_budget_kwh"


def test_an_optimizer_that_is_not_installed_is_named_with_the_remedy(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_optimizer("adamw")
    with pytest.raises(OptimizerMissing, match="training.optimizer = 'adamw_8bit' needs the package bitsandbytes.*pip install"):
        check_optimizer("adamw_8bit")


def test_adafactor_trains(tmp_path: Path) -> None:
    done = train(tmp_path / "run", optimizer="adafactor")
    plain = train(tmp_path / "plain")
    assert done.losses[0] == plain.losses[0] and done.losses[-1] < done.losses[0]
    assert done.losses[-1] != plain.losses[-1], "another optimizer than adamw"
