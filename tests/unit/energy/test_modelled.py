"""The modelled power of a host: its facts, its formula, and what may not change it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
from pydantic import ValidationError

from tests.helpers.meter_bench import Bench, python
from tests.unit.energy.test_record import attempt
from workflow_scripts.energy.attribution import JobShare
from workflow_scripts.energy.host import PowerModel
from workflow_scripts.energy.phases import Phases
from workflow_scripts.energy.record import build_record
from workflow_scripts.energy.sources import codecarbon
from workflow_scripts.energy.sources.base import Figure, unavailable
from workflow_scripts.energy.sources.codecarbon import ModelledPower, as_codecarbon, power_model
from workflow_scripts.settings.schema import Energy

MODEL = PowerModel(
    cpu_model="Xeon",
    cpu_tdp_watts=200.0,
    cpu_tdp_source="registry",
    sockets=1,
    cores=8,
    threads=16,
    memory_gb=64.0,
    dram_watts=20.0,
    dram_watts_source="codecarbon",
    virtual=False,
)
Times = type(psutil.cpu_times())


class Host:
    """CPU times of a host that are set by hand."""

    def __init__(self, monkeypatch) -> None:
        self.busy = self.idle = 0.0
        monkeypatch.setattr(psutil, "cpu_times", self.times)

    def times(self):
        values = dict.fromkeys(Times._fields, 0.0) | {"user": self.busy, "idle": self.idle}
        return Times(**values)

    def run(self, seconds: float, load: float) -> None:
        self.busy += seconds * load
        self.idle += seconds * (1 - load)


def test_each_sample_has_the_formulas_watts_and_joules_never_fall(monkeypatch) -> None:
    """By hand: 1 s at full load, 2 s at half, 1 s at rest. CodeCarbon: 200 (0.1 + 0.9 l^3) W; Green Algorithms: 200 l W."""
    host = Host(monkeypatch)
    source = ModelledPower(MODEL, 0.0)
    told = []
    now = 0.0
    for seconds, load in ((1.0, 1.0), (2.0, 0.5), (1.0, 0.0)):
        for _ in range(int(seconds / 0.25)):
            host.run(0.25, load)
            now += 0.25
            told.append(source.read(now)["cpu"].joules)
    figures = source.read(now)
    assert figures["cpu"].joules == pytest.approx(200 * 1.0 + 2 * 200 * (0.1 + 0.9 / 8) + 200 * 0.1)
    assert figures["cpu"].crosscheck == pytest.approx(200 + 2 * 100 + 0)
    assert figures["cpu"].idle_joules == pytest.approx(0.1 * 200 * 4)
    assert figures["dram"].joules == figures["dram"].idle_joules == pytest.approx(20 * 4)
    assert figures["dram"].crosscheck == pytest.approx(0.3725 * 64 * 4)
    assert told == sorted(told) and told[0] > 0
    assert {figures[name].gap_joules for name in figures} == {0.0}


def test_a_shorter_step_than_the_clock_of_cpu_time_waits_unless_it_is_the_last(monkeypatch) -> None:
    host = Host(monkeypatch)
    source = ModelledPower(MODEL, 0.0)
    host.run(0.05, 1.0)
    assert source.read(0.05)["cpu"].joules == 0.0
    assert source.read(0.05, final=True)["cpu"].joules == pytest.approx(10.0)


def test_an_unknown_cpu_is_twelve_watts_a_core_for_the_second_model(monkeypatch) -> None:
    host = Host(monkeypatch)
    source = ModelledPower(replace(MODEL, cpu_tdp_source="fallback"), 0.0)
    host.run(1.0, 0.5)
    assert source.read(1.0)["cpu"].crosscheck == pytest.approx(0.5 * 12 * 8)
    assert any("does not know the CPU 'Xeon': 200 W is 4 W a thread: set energy.cpu_tdp_watts" in w for w in source.warnings())


def test_doubtful_models_say_so() -> None:
    assert ModelledPower(MODEL, 0.0).warnings() == []
    doubtful = replace(MODEL, virtual=True, dram_watts=300.0)
    texts = ModelledPower(doubtful, 0.0).warnings()
    assert "virtual machine" in texts[0] and "the memory's 300 W exceed the CPU's 200 W" in texts[1]


def test_facts_are_found_once_and_the_configuration_wins(tmp_path: Path, monkeypatch) -> None:
    calls = []
    here = replace(MODEL, threads=psutil.cpu_count(), memory_gb=psutil.virtual_memory().total / 2**30)
    monkeypatch.setattr(codecarbon, "find_power_model", lambda: calls.append(1) or here)
    path = tmp_path / "hosts" / "h.json"
    assert power_model(Energy().model_dump(), path) == power_model(Energy().model_dump(), path) == here
    assert len(calls) == 1
    own = power_model(Energy(cpu_tdp_watts=300.0, dram_watts_per_gb=0.5).model_dump(), path)
    assert (own.cpu_tdp_watts, own.cpu_tdp_source) == (300.0, "configuration")
    assert (own.dram_watts, own.dram_watts_source) == (pytest.approx(0.5 * here.memory_gb), "configuration")
    path.write_text(json.dumps(asdict(replace(here, threads=999))))
    power_model(Energy().model_dump(), path)
    assert len(calls) == 2, "the file is of another host"
    for damaged in ("{", "[]", "{}", json.dumps(asdict(here) | {"dram_watts": "much"})):
        path.write_text(damaged)
        assert power_model(Energy().model_dump(), path) == here
    assert len(calls) == 6, "a damaged file is made again"


def test_a_stage_does_not_wait_for_what_only_the_record_needs() -> None:
    needed = "import sys, workflow_scripts.energy.meter; print(*{'pydantic', 'codecarbon', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", needed], capture_output=True, text=True, check=True).stdout.split() == []


def test_one_model_of_the_memory_is_given() -> None:
    with pytest.raises(ValidationError, match=r"energy.dram_watts = 5 and energy.dram_watts_per_gb = 0.3 say the same thing"):
        Energy(dram_watts=5.0, dram_watts_per_gb=0.3)


def test_a_stage_of_a_moment_has_a_figure_and_codecarbons_row_agrees(tmp_path: Path) -> None:
    bench = Bench(tmp_path, total_energy_policy="codecarbon", nvml_poll_interval_ms=500, country_iso_code="CAN")
    assert bench.run(*python("import time; time.sleep(0.3)")).returncode == 0
    record = bench.record()
    assert record["energy"]["cpu"]["joules"] > 0 and record["energy"]["dram"]["joules"] > 0
    assert record["energy"]["total"]["class"] == "modelled" and record["attempts"][0]["sampling"]["j_in_gaps"] == 0
    with next((tmp_path / "state").glob("work/*/codecarbon/work.csv")).open() as handle:
        (row,) = csv.DictReader(handle)
    assert float(row["energy_consumed"]) * 3.6e6 == pytest.approx(record["total_energy_joules"], rel=0.02)
    assert float(row["emissions"]) == pytest.approx(record["codecarbon_emissions_kg"], rel=0.02)
    assert record["power_models"][0]["cpu_tdp_source"] in ("registry", "fallback")
    assert record["cpu"]["job_s"] >= 0


@pytest.mark.parametrize("name", ["home", "here", "broken"])
def test_a_foreign_codecarbon_configuration_changes_nothing(tmp_path: Path, monkeypatch, name: str) -> None:
    """B2, B3: a file that multiplies energy by 20, in the home folder or here, or a broken one; and the environment."""
    text = "[codecarbon]\nforce_cpu_power=4000\nforce_ram_power=900\npue=20\n" if name != "broken" else "[codecarbon\n:::"
    (tmp_path / ".codecarbon.config").write_text(text)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CODECARBON_PUE", "20")
    monkeypatch.setenv("CODECARBON_FORCE_CPU_POWER", "4000")
    bench = Bench(tmp_path / "bench", total_energy_policy="codecarbon", cpu_tdp_watts=100.0, dram_watts=10.0)
    if name == "here":
        monkeypatch.chdir(tmp_path)
    assert bench.run(*python("import time; time.sleep(0.3)")).returncode == 0
    record = bench.record()
    seconds = record["duration_seconds"]
    assert record["energy"]["dram"]["joules"] == pytest.approx(10 * seconds, rel=0.02)
    assert 10 * seconds * 0.98 <= record["energy"]["cpu"]["joules"] <= 100 * seconds * 1.02


@pytest.mark.parametrize("scontrol", [None, "#!/bin/sh\necho 'NumCPUs=1 AllocTRES=cpu=1,mem=1G'\n", "#!/bin/sh\nexit 1\n"])
def test_slurms_words_do_not_change_the_model_of_the_host(tmp_path: Path, monkeypatch, scontrol: str | None) -> None:
    """B4, B5: a job number without scontrol, or with one that tells the job's part of the host."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("METER_HOSTS", str(tmp_path / "hosts"))
    if scontrol is not None:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "scontrol").write_text(scontrol)
        (tmp_path / "bin" / "scontrol").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    bench = Bench(tmp_path / "bench", total_energy_policy="codecarbon")
    assert bench.run(*python("import time; time.sleep(0.2)")).returncode == 0
    (model,) = bench.record()["power_models"]
    assert model["threads"] == psutil.cpu_count()
    assert model["memory_gb"] == pytest.approx(psutil.virtual_memory().total / 2**30, rel=0.01)
    assert bench.record()["energy"]["cpu"]["joules"] > 0


def test_the_worked_example_of_the_documentation(monkeypatch) -> None:
    """docs/energy.md, line by line, by the program."""
    host = Host(monkeypatch)
    source = ModelledPower(MODEL, 0.0)
    job = JobShare(4 / 16)
    phases = Phases(0.0)
    for second in range(1, 11):
        host.run(1.0, 0.5)
        figures = source.read(float(second))
        total = sum(figure.joules for figure in figures.values())
        phases.tick(float(second), total, {"phases": {"marks": [("work", 2.0)], "tokens": {"work": 1000}}})
        job.look(0.6, figures)
    entries = {name: figure.as_json() for name, figure in source.read(10.0).items()}
    energy = Energy(carbon_intensity_g_per_kwh=100.0, pue=1.2)
    record = build_record([attempt(1, 10.0, energy=energy, phases=phases.content(), **entries)], {})
    cpu, dram, total = record.energy.cpu, record.energy.dram, record.energy.total
    found = {
        "CPU": f"{cpu.joules:g} J",
        "CPU, second model": f"{cpu.crosscheck:g} J",
        "half-width of the CPU": f"{cpu.joules * cpu.uncertainty_pct / 100:g} J",
        "memory": f"{dram.joules:g} J",
        "memory, second model": f"{dram.crosscheck:g} J",
        "half-width of the memory": f"{dram.joules * dram.uncertainty_pct / 100:g} J",
        "total": f"{total.joules:g} J",
        "half-width of the total": f"{total.uncertainty_j:.1f} J",
        "work phase per token": f"{record.work_joules_per_token:g} J/token",
        "a job with 4 of the 16 CPUs and 60 % of the CPU time, CPU": f"{job.joules('cpu', source.read(10.0)['cpu']):g} J",
        "the same, memory": f"{job.joules('dram', source.read(10.0)['dram']):g} J",
        "grams at 100 g/kWh and PUE 1.2": f"{record.carbon.grams:.5f} g",
    }
    text = (Path(__file__).parents[3] / "docs" / "energy.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text[text.index("| what |") :].splitlines() if line.count("|") == 4]
    assert {row[0]: row[2] for row in rows[2:]} == found


def test_a_module_stands_in_codecarbon_s_column_of_the_gpu() -> None:
    nothing = unavailable("counted in module")
    assert as_codecarbon({"gpu": nothing, "module": Figure(5.0), "cpu": nothing, "dram": nothing}) == (5.0, 0.0, 0.0)
    assert as_codecarbon({"gpu": Figure(1.0), "cpu": Figure(2.0), "dram": nothing}) == (1.0, 2.0, 0.0)
