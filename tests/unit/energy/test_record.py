"""Records from ledgers written by hand: every sum, split and reason is worked out here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jsonschema
import pandas as pd
import pytest

from workflow_scripts.artefact import ArtefactError
from workflow_scripts.energy.carbon import intensity
from workflow_scripts.energy.ledger import Attempt
from workflow_scripts.energy.model import StageRecord
from workflow_scripts.energy.record import build_record
from workflow_scripts.energy.uncertainty import Energy as Joules
from workflow_scripts.settings.schema import Energy
from workflow_scripts.stages.prerun import _mean_watts

REPOSITORY = Path(__file__).parents[3]
SCHEMA = json.loads((REPOSITORY / "workflow_scripts" / "energy" / "record_schema.json").read_text())
PROVENANCE = {"fingerprint": "f", "cpu": "x"}


def figure(joules, method="RAPL", energy_class="measured", **more) -> dict:
    if joules is None:
        method, energy_class, more = None, "unavailable", {"reason": "not there"} | more
    keys = {"devices": {}, "crosscheck": None, "gap_joules": 0.0, "reason": None, "share": None}
    return {"joules": joules, "class": energy_class, "method": method, **keys, **more}


def attempt(number: int, elapsed: float, end: str | None = "completed", energy: Energy | None = None, **parts) -> Attempt:
    start = {
        "stage": "s",
        "role": "student",
        "experiment": "e",
        "pipeline": "kd",
        "energy": (energy or Energy(carbon_intensity_g_per_kwh=100.0)).model_dump(),
        "scope": parts.pop("scope", "host"),
        "idle": parts.pop("idle", None),
        "attempt": f"a{number}",
        "time": 1000.0 * number,
        "host": "h",
        "slurm": {},
        "devices": [],
        "provenance": PROVENANCE,
    }
    names = ("gpu", "cpu", "dram", *(["module"] if "module" in parts else []))
    line = {
        "elapsed_s": elapsed,
        "joules": {name: parts.get(name, figure(None)) for name in names},
        "work": parts.get("work"),
        "saved_joules": parts.get("saved"),
        "codecarbon": parts.get("codecarbon"),
        "phases": parts.get("phases"),
        "cpu": parts.get("cpu_time"),
    }
    if end is None:
        return Attempt(Path("x"), start, ticks=[line])
    outcome = {"outcome": end, "exit_code": 0 if end == "completed" else 1, "signal": None}
    return Attempt(Path("x"), start, end=line | outcome)


def build(*attempts: Attempt):
    record = build_record(list(attempts), {})
    jsonschema.validate(record.model_dump(mode="json", by_alias=True), SCHEMA)
    return record


def work(done: int, resumed: int | None = None) -> dict:
    return {
        "unit": "loss",
        "total": 100,
        "work": {"loss": done, "input": 2 * done, "steps": 1},
        "durable": None,
        "resumed": {"loss": resumed} if resumed else None,
        "metrics": {},
    }


def test_attempts_add_up_and_split_into_useful_and_wasted() -> None:
    """Five attempts of which three count: saved 60 of 100 J, never saved, completed."""
    record = build(
        attempt(1, 10, None, cpu=figure(100.0), saved={"cpu": 60.0}, work=work(50)),
        attempt(2, 5, "failed", cpu=figure(40.0), work=work(55, resumed=50)),
        attempt(3, 20, cpu=figure(200.0), work=work(100, resumed=50)),
    )
    assert record.total_energy_joules == 340.0
    assert record.useful_j == 60.0 + 200.0
    assert record.wasted_j == 40.0 + 40.0
    assert record.duration_seconds == 35.0
    assert [a.outcome for a in record.attempts] == ["lost", "failed", "completed"]
    assert record.joules_per_token == 3.4
    assert record.joules_per_token_by_type == {
        "loss": 3.4,
        "input": 1.7,
        "generated": None,
        "padded": None,
        "discarded": None,
    }
    assert record.work.generated is None and record.status == "complete"


def test_a_stage_that_was_done_twice_counts_its_first_run_as_waste() -> None:
    record = build(attempt(1, 10, cpu=figure(100.0), work=work(100)), attempt(2, 10, cpu=figure(90.0), work=work(100)))
    assert (record.useful_j, record.wasted_j) == (90.0, 100.0)


def test_a_restored_stage_keeps_the_work_and_the_worth_of_its_first_run() -> None:
    record = build(attempt(1, 10, cpu=figure(100.0), work=work(100)), attempt(2, 1, cpu=figure(2.0)))
    assert (record.useful_j, record.wasted_j, record.tokens_processed) == (102.0, 0.0, 100)


def test_a_stage_killed_after_it_had_published_is_useful_when_restored() -> None:
    record = build(
        attempt(1, 10, "failed", cpu=figure(50.0), work=work(10)),
        attempt(2, 10, "signal", cpu=figure(100.0), work=work(100)),
        attempt(3, 1, cpu=figure(2.0)),
    )
    assert (record.useful_j, record.wasted_j) == (102.0, 50.0)


def test_a_lost_last_attempt_is_partial() -> None:
    assert build(attempt(1, 1, None, cpu=figure(1.0))).status == "partial"
    assert build(attempt(1, 1, "failed", cpu=figure(1.0))).status == "failed"


def test_an_attempt_without_a_figure_is_named_not_zero() -> None:
    unflushed = attempt(1, 0.0, None)
    unflushed.ticks.clear()
    record = build(unflushed, attempt(2, 3, cpu=figure(9.0)))
    assert record.total_energy_joules == 9.0
    assert record.warnings == ["attempt a1: its energy is not known, it ended before a source had a figure"]
    nothing = build(attempt(1, 0.0))
    assert nothing.total_energy_joules is None and nothing.energy.total.reason is not None


@pytest.mark.parametrize("first_lacks", [True, False])
def test_a_component_that_one_attempt_lacks_is_not_a_smaller_total(first_lacks: bool) -> None:
    """B10: 10 kJ of CPU in each attempt, 30 kJ of GPU in one of them; the GPU's of the other are in no counter."""
    lacking = attempt(1, 10, "failed" if first_lacks else "completed", cpu=figure(1e4), gpu=figure(None, reason="driver gone"))
    having = attempt(2, 10, cpu=figure(1e4), gpu=figure(3e4, "NVML total energy counter"))
    if not first_lacks:
        lacking.start["time"] = 3000.0
    record = build(*sorted((lacking, having), key=lambda a: a.start["time"]))
    assert record.energy.gpu.joules is None and record.energy.gpu.reason == "attempt a1: driver gone"
    assert record.total_energy_joules is None and record.energy.total.reason == "gpu: attempt a1: driver gone"
    assert (record.joules_per_token, record.useful_j, record.wasted_j) == (None, None, None)
    assert record.energy.cpu.joules == 2e4, "what is known is kept"


def test_a_component_that_fails_at_the_last_reading_is_no_smaller_total() -> None:
    whole, counter = figure(1e4), "NVML total energy counter"
    made = attempt(1, 10, cpu=whole, gpu=figure(None, reason="driver gone"))
    made.ticks.append({"elapsed_s": 9.0, "joules": {"cpu": whole, "gpu": figure(3e4, counter)}, "work": None})
    record = build(made)
    assert record.total_energy_joules is None and record.energy.total.reason == "gpu: attempt a1: driver gone"
    never = attempt(1, 10, cpu=whole, gpu=figure(None, reason="no GPU"))
    never.ticks.append({"elapsed_s": 9.0, "joules": {"cpu": whole, "gpu": figure(None, reason="no GPU")}, "work": None})
    assert build(never).total_energy_joules == 1e4, "a host without GPUs"


def test_a_modelled_figure_is_at_least_as_uncertain_as_two_models_differ() -> None:
    cpu = figure(100.0, "CodeCarbon CPU model", "modelled", crosscheck=30.0)
    dram = figure(100.0, "CodeCarbon RAM model", "modelled", crosscheck=99.0)
    record = build(attempt(1, 10, cpu=cpu, dram=dram))
    assert record.energy.cpu.uncertainty_pct == pytest.approx(70.0)
    assert record.energy.dram.uncertainty_pct == pytest.approx(50.0), "energy.uncertainty_pct.codecarbon_ram"
    assert record.energy.total.uncertainty_j == pytest.approx(math.hypot(70.0, 50.0)), "two instruments"


def test_phases_add_up_over_attempts_and_rates_are_of_the_work() -> None:
    def phases(joules, seconds, tokens):
        return {
            "start": {"joules": 5.0, "seconds": 2.0, "tokens": 0},
            "work": {"joules": joules, "seconds": seconds, "tokens": tokens},
        }

    first = attempt(1, 10, "failed", cpu=figure(45.0), phases=phases(40.0, 8.0, 100))
    record = build(first, attempt(2, 6, cpu=figure(25.0), phases=phases(20.0, 4.0, 20), work=work(120)))
    assert record.phases["start"].model_dump() == {"joules": 10.0, "seconds": 4.0, "tokens": 0}
    assert (record.work_joules_per_token, record.work_tokens_per_second) == (60.0 / 120, 120 / 12.0)
    assert record.joules_per_token == 70.0 / 120, "the launch guide's: everything over the tokens"


def test_other_work_on_the_host_is_one_warning_with_its_figure() -> None:
    cpu = {"job_s": 10.0, "foreign_s": 6.0, "steal_s": 0.5, "foreign_pct": 30.0, "host_cpus": 2}
    record = build(
        attempt(1, 10, cpu=figure(9.0), cpu_time=cpu), attempt(2, 10, cpu=figure(9.0), cpu_time=cpu | {"foreign_pct": 4.0})
    )
    assert [w for w in record.warnings if "other work" in w] == [
        "other work ran on the host: 6 CPU s, 30 % of its 2 CPUs during attempt a1: time and host-level joules are not the "
        "stage's alone"
    ]
    assert record.cpu is not None and (record.cpu.job_s, record.cpu.foreign_pct) == (20.0, 30.0)


def test_zero_tokens_are_unknown_not_free() -> None:
    record = build(attempt(1, 10, cpu=figure(5.0), work=work(0)))
    assert record.tokens_processed is None and record.joules_per_token is None and record.tokens_per_second is None


@pytest.mark.parametrize(
    ("policy", "total", "boundary", "worst"),
    [
        ("measured", 160.0, ["gpu", "cpu", "dram"], "modelled"),
        ("codecarbon", 60.0, ["cpu", "dram"], "modelled"),
        ("gpu_only", 100.0, ["gpu"], "measured"),
    ],
)
def test_policies_and_the_worst_class(policy, total, boundary, worst) -> None:
    energy = Energy(total_energy_policy=policy, carbon_intensity_g_per_kwh=100.0, pue=1.5)
    parts = {
        "gpu": figure(100.0, "NVML total energy counter"),
        "cpu": figure(50.0),
        "dram": figure(10.0, "CodeCarbon RAM model", "modelled"),
    }
    record = build(attempt(1, 10, energy=energy, **parts))
    assert (record.energy.total.joules, record.energy.total.boundary) == (total, boundary)
    assert record.energy.total.energy_class == worst
    assert record.total_energy_joules == total, "PUE is never multiplied in"
    assert record.carbon.grams == pytest.approx(total / 3.6e6 * 1.5 * 100)


@pytest.mark.parametrize("policy", ["measured", "gpu_only"])
def test_a_module_is_a_component_of_its_own(policy: str) -> None:
    record = build(attempt(1, 10, energy=Energy(total_energy_policy=policy), module=figure(100.0, "NVML total energy counter")))
    assert (record.energy.total.joules, record.energy.total.boundary) == (100.0, ["module"])
    assert record.energy.module is not None and record.energy.module.scope == "device"
    assert record.energy.total.uncertainty_j == pytest.approx(5.0) and record.gpu_energy_joules is None
    assert build(attempt(1, 10, cpu=figure(1.0))).energy.module is None


def test_uncertainty_is_linear_in_one_instrument_and_quadratic_across() -> None:
    gpu, cpu, more = (Joules(100.0, {(name, "h"): j}) for name, j in (("NVML", 5.0), ("RAPL", 12.0), ("RAPL", 5.0)))
    assert (gpu + cpu).half_width == pytest.approx(13.0)
    assert (more + cpu).half_width == pytest.approx(17.0)
    parts = {
        "gpu": figure(100.0, "NVML total energy counter"),
        "cpu": figure(20.0, "CodeCarbon CPU model", "modelled"),
        "dram": figure(10.0, "CodeCarbon RAM model", "modelled"),
    }
    total = build(attempt(1, 10, **parts)).energy.total
    assert total.uncertainty_j == pytest.approx(math.hypot(5.0, 10.0, 5.0)), "the models of CPU and RAM are two instruments"
    assert total.uncertainty_pct == pytest.approx(100 * math.hypot(5.0, 10.0, 5.0) / 130)


def test_a_shared_host_keeps_the_host_figure_beside_the_share() -> None:
    cpu = figure(25.0, host_joules=100.0)
    component = build(attempt(1, 10, scope="job", cpu=cpu)).energy.cpu
    assert (component.joules, component.host_joules, component.share, component.scope) == (25.0, 100.0, 0.25, "job")
    assert component.uncertainty_pct == pytest.approx(math.hypot(5, 20))


IDLE = {"host": "h", "gpus": [], "watts": {"gpu": None, "cpu": 3.0, "dram": None}, "stable": True, "reason": None}


def test_joules_above_idle_over_the_same_boundary() -> None:
    assert build(attempt(1, 10, cpu=figure(100.0), idle=IDLE)).above_idle_j == 70.0
    grace = IDLE | {"watts": {"gpu": None, "module": 90.0, "cpu": 3.0, "dram": None}}
    module = {"module": figure(2000.0, "NVML power")}
    assert build(attempt(1, 10, cpu=figure(100.0), idle=grace, **module)).above_idle_j == 2100 - 930


def test_an_old_baseline_is_said() -> None:
    record = build(attempt(1, 10, cpu=figure(100.0), idle=IDLE | {"time": 1000.0 - 40 * 86400}))
    assert record.warnings == ["the idle baseline is 40 days old: the next run measures it anew"]
    assert build(attempt(1, 10, cpu=figure(100.0), idle=IDLE | {"time": 0.0})).warnings == []


def test_idle_power_from_a_staircase_and_from_a_line() -> None:
    """20 W in steps of one second, sampled at 300 ms over a window that cuts steps: still 20 W."""
    times = [5.1 + 0.3 * i for i in range(11)]
    trace = pd.DataFrame({"elapsed_s": times, "dram_j": [20.0 * int(t) for t in times], "cpu_j": [3.0 * t for t in times]})
    trace["gpu_j"] = math.nan
    assert _mean_watts(trace, "dram_j") == pytest.approx(20.0, rel=0.1)
    assert _mean_watts(trace, "cpu_j") == pytest.approx(3.0)
    assert _mean_watts(trace, "gpu_j") is None
    assert _mean_watts(trace.assign(cpu_j=7.0), "cpu_j") == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("change", "parts", "reason"),
    [
        ({"stable": False, "reason": "busy"}, {}, "not stable: busy"),
        ({}, {"dram": figure(5.0)}, "lacks a component of the boundary"),
        ({}, {"scope": "job"}, "the figure the job's share"),
        ({"host": "other"}, {}, "the baseline is of host other, the stage ran on h"),
        ({"gpus": ["GPU-2"]}, {"gpu": figure(5.0, "NVML power")}, "the baseline is of the GPUs GPU-2, the stage had (none)"),
        ({"gpus": ["GPU-2"]}, {"module": figure(5.0, "NVML power")}, "the baseline is of the GPUs GPU-2, the stage had (none)"),
    ],
)
def test_no_baseline_no_figure_but_the_reason(change, parts, reason) -> None:
    record = build(attempt(1, 10, cpu=figure(100.0), idle=IDLE | change, **parts))
    assert record.above_idle_j is None
    assert reason in record.idle.above_idle_reason


@pytest.mark.parametrize(
    ("options", "grams", "year", "place"),
    [
        ({}, 170.0, 2023, "CAN"),
        ({"region": "Ontario"}, 64.7, 2023, "Ontario, CAN"),
        ({"region": "quebec"}, 3.9, 2023, "quebec, CAN"),
        ({"region": "alberta"}, 627.7, 2023, "alberta, CAN"),
        ({"carbon_intensity_g_per_kwh": 12.5}, 12.5, None, "CAN"),
        ({"carbon_intensity_g_per_kwh": 12.5, "country_iso_code": None}, 12.5, None, None),
    ],
)
def test_carbon_intensity_with_source_and_year(options, grams, year, place) -> None:
    found = intensity(Energy(**{"country_iso_code": "CAN"} | options).model_dump())
    assert found["intensity_g_per_kwh"] == pytest.approx(grams, abs=0.06)
    assert (found["year"], found["region"]) == (year, place)
    assert found["source"] == ("configuration" if "carbon_intensity_g_per_kwh" in options else "CodeCarbon's table")


def test_an_unknown_place_has_no_grams_and_says_why() -> None:
    found = intensity(Energy(country_iso_code="XYZ").model_dump())
    assert found["intensity_g_per_kwh"] is None and "'XYZ' is not in CodeCarbon's table" in found["reason"]
    found = intensity(Energy(country_iso_code="CAN", region="Atlantis").model_dump())
    assert found["intensity_g_per_kwh"] is None and "ontario" in found["reason"]
    found = intensity(Energy().model_dump())
    assert found["intensity_g_per_kwh"] is None and "set energy.country_iso_code" in found["reason"], "no country is assumed"


def test_what_a_stage_read_is_in_its_provenance_and_absent_where_it_was_not_kept(tmp_path: Path) -> None:
    plain = build(attempt(1, 10, cpu=figure(100.0)))
    assert plain.content()["provenance"] == PROVENANCE, "nothing is invented for records of earlier versions"
    known = {
        "settings": {"training": {"learning_rate": 1e-4}},
        "inputs": {"model": "results/models/x/manifest.json"},
        "files": {"results/models/x/manifest.json": {"bytes": 3, "sha256": "ab", "mtime_ns": 5}},
        "code": "cd",
    }
    made = attempt(1, 10, cpu=figure(100.0))
    made.start["provenance"] = PROVENANCE | known
    path = tmp_path / "record.json"
    path.write_text(json.dumps(build(made).content()))
    found = StageRecord.read(path)
    assert found.content()["provenance"] == PROVENANCE | known
    assert found.provenance.files is not None and found.provenance.files["results/models/x/manifest.json"].mtime_ns == 5


def test_a_record_is_read_back_as_it_was_written_and_damage_is_named(tmp_path: Path) -> None:
    record = build(attempt(1, 10, cpu=figure(100.0)))
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record.content()))
    assert StageRecord.read(path) == record
    path.write_text(json.dumps(record.content() | {"attempts": None}))
    with pytest.raises(ArtefactError, match=r"record.json: attempts: Input should be a valid list: delete it"):
        StageRecord.read(path)
    path.write_text("[]")
    with pytest.raises(ArtefactError, match="schema 'list', this program reads energy-stage/1"):
        StageRecord.read(path)
