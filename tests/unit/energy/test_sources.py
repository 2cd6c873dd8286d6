"""The arithmetic of the sources on recorded readings, against closed forms; which devices are the job's."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from workflow_scripts.energy.sampler import Sampler
from workflow_scripts.energy.sources.base import PowerIntegral, ReadingError
from workflow_scripts.energy.sources.nvml import GpuSource, NvmlReader, open_nvml, resolve_devices
from workflow_scripts.energy.sources.replay import Replay, ReplayGpu
from workflow_scripts.energy.sources.slurm import consumed_energy
from workflow_scripts.settings.schema import Energy

UUIDS = ["GPU-8f2a-1", "GPU-11bc-2", "GPU-11bd-3", "GPU-77aa-4"]


@pytest.mark.parametrize(
    ("environment", "devices", "warned"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0"}, [0], False),
        ({"CUDA_VISIBLE_DEVICES": "2,0"}, [2, 0], False),
        ({"CUDA_VISIBLE_DEVICES": " 1 , 3 "}, [1, 3], False),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8f2a-1, GPU-11bc-2"}, [0, 1], False),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8, GPU-7"}, [0, 3], False),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8,GPU-11b,1"}, [0], True),  # a prefix of two
        ({"CUDA_VISIBLE_DEVICES": "3,GPU-8f2a"}, [3, 0], False),
        ({"CUDA_VISIBLE_DEVICES": "0,0,GPU-8f2a,1,0"}, [0, 1], False),
        ({"CUDA_VISIBLE_DEVICES": "0,4,1"}, [0], True),
        ({"CUDA_VISIBLE_DEVICES": "0,GPU-99,1"}, [0], True),
        ({"CUDA_VISIBLE_DEVICES": "4"}, [], True),
        ({"CUDA_VISIBLE_DEVICES": "first"}, [], True),
        ({"CUDA_VISIBLE_DEVICES": "0,-1,1"}, [0], False),
        ({"CUDA_VISIBLE_DEVICES": ""}, [], False),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, [], False),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, [], False),
        ({}, [0, 1, 2, 3], True),
        ({"SLURM_JOB_GPUS": "2,3"}, [2, 3], False),
        ({"SLURM_JOB_GPUS": "2,3", "SLURM_STEP_GPUS": "3"}, [3], False),
        ({"SLURM_JOB_GPUS": "4,5,6,7"}, [0, 1, 2, 3], False),  # the others are hidden
        ({"CUDA_VISIBLE_DEVICES": "0", "SLURM_JOB_GPUS": "2"}, [0], False),
    ],
)
def test_devices_of_the_job(environment, devices, warned) -> None:
    found, warnings = resolve_devices(environment, UUIDS)
    assert found == devices
    assert len(warnings) == warned


def test_a_mig_instance_is_unavailable_with_that_reason() -> None:
    with pytest.raises(OSError, match="MIG-7a is a MIG instance: hardware does not meter it apart"):
        resolve_devices({"CUDA_VISIBLE_DEVICES": "0,MIG-7a"}, UUIDS)


def test_integrated_trace_equals_the_closed_form() -> None:
    """300 + 100 sin(t) W over an hour at 500 ms: the trapezoid rule against the integral of its own interpolation and sin."""
    integral = PowerIntegral(max_gap_s=1.0)
    period, count = 0.001, 200_000
    for i in range(count + 1):
        integral.advance(i * period, 300 + 100 * math.sin(i * period))
    end = count * period
    closed_form = 300 * end + 100 * (1 - math.cos(end))
    assert integral.joules == pytest.approx(closed_form, rel=1e-6)
    assert integral.gap_joules == 0


def test_irregular_linear_trace_is_exact_and_gaps_are_apart() -> None:
    integral = PowerIntegral(max_gap_s=2.0)
    times = [0.0, 0.5, 1.7, 2.0, 12.0, 13.0]
    for t in times:
        integral.advance(t, 10 * t)
    assert integral.joules == pytest.approx(5 * 2.0**2 + 5 * (13.0**2 - 12.0**2))
    assert integral.gap_joules == pytest.approx(5 * (12.0**2 - 2.0**2))


def gpus(trace: list[dict], *uuids: str, period: float = 1.0):
    replay = Replay(trace)
    source = GpuSource([ReplayGpu(replay, uuid) for uuid in uuids], trace[0]["t"], max_gap_s=2 * period)

    def play() -> list:
        figures = []
        for instant in trace[1:]:
            replay.now = instant["t"]
            figures.append(source.read(instant["t"])["gpu"])
        return figures

    return source, play


def test_two_gpus_counted_exactly_with_integrated_power_beside() -> None:
    trace = [{"t": t, "A.mj": 1000 + 250_000 * t, "A.w": 250.0, "B.mj": 100_000 * t, "B.w": 100.0} for t in range(11)]
    _, play = gpus(trace, "A", "B")
    last = play()[-1]
    assert (last.joules, last.watts, last.energy_class) == (3500.0, 350.0, "measured")
    assert last.devices == {"A": 2500.0, "B": 1000.0}
    assert last.crosscheck == pytest.approx(3500.0)
    assert last.warnings == []


def test_counter_and_power_that_diverge_are_flagged() -> None:
    trace = [{"t": t, "A.mj": 100_000 * t, "A.w": 60.0} for t in range(11)]
    _, play = gpus(trace, "A")
    assert play()[-1].warnings == ["A: counter 1000 J and integrated power 600 J differ by 40%"]


def test_without_a_counter_power_is_integrated() -> None:
    trace = [{"t": 0.0, "A.w": 100.0}, {"t": 1.0, "A.w": 200.0}, {"t": 9.0, "A.w": 200.0}]
    _, play = gpus(trace, "A")
    last = play()[-1]
    assert (last.joules, last.gap_joules, last.energy_class) == (150.0 + 1600.0, 1600.0, "integrated")


def test_one_gpu_of_two_that_fails_is_marked_and_the_other_exact() -> None:
    trace = [{"t": t, "A.mj": 100_000 * t, "A.w": 100.0, "B.mj": 50_000 * t, "B.w": 50.0} for t in range(6)]
    for instant in trace[3:]:
        instant["B.mj"] = instant["B.w"] = "GPU is lost"
    _, play = gpus(trace, "A", "B")
    figures = play()
    first, last = figures[0], figures[-1]
    assert first.joules == 150.0
    assert last.joules is None and last.energy_class == "unavailable"
    assert last.reason == "B: GPU is lost"
    assert last.devices == {"A": 500.0}


def test_a_gpu_that_answers_again_has_lost_nothing_of_its_counter() -> None:
    trace = [{"t": t, "A.mj": 100_000 * t, "A.w": 100.0} for t in range(6)]
    trace[2]["A.w"] = trace[2]["A.mj"] = "timeout"
    _, play = gpus(trace, "A")
    figures = play()
    assert figures[1].joules is None and figures[-1].joules == 500.0


def test_a_gpu_counter_that_was_reset_is_unavailable_from_then_on() -> None:
    trace = [{"t": t, "A.mj": value, "A.w": 100.0} for t, value in enumerate((0, 100_000, 50, 100_050))]
    _, play = gpus(trace, "A")
    last = play()[-1]
    assert last.joules is None and "went back from 100000 to 50" in last.reason


def test_foreign_processes_on_the_gpu_are_listed() -> None:
    source, _ = gpus([{"t": 0, "A.mj": 0, "A.w": 1.0, "A.pids": [11, 12, 13]}], "A")
    assert source.describe({12}) == [{"uuid": "A", "name": "replayed GPU", "other_processes": [11, 13]}]


class FakeNvml:
    """The part of pynvml that is called: GPUs with a counter and without the instant power field.

    A function that is given as an exception raises it, here and in the binding's own way: not all are NVMLErrors.
    """

    NVML_FI_DEV_POWER_INSTANT, NVML_SUCCESS, NVML_TEMPERATURE_GPU, NVML_POWER_SCOPE_MODULE = 186, 0, 0, 1
    NVML_CLOCK_SM = 1
    NVMLError = type("NVMLError", (Exception,), {})
    NVMLError_NotSupported = type("NVMLError_NotSupported", (NVMLError,), {})
    NVMLError_FunctionNotFound = type("NVMLError_FunctionNotFound", (NVMLError,), {})
    NVMLLibraryMismatchError = type("NVMLLibraryMismatchError", (Exception,), {})

    def __init__(self, instant: int = 0, **functions: object) -> None:
        answers: dict[str, object] = {
            "nvmlInit": None,
            "nvmlDeviceGetCount": 2,
            "nvmlDeviceGetHandleByIndex": lambda number: number,
            "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
            "nvmlDeviceGetTotalEnergyConsumption": 5000,
            "nvmlDeviceGetPowerUsage": 70_000,
            "nvmlDeviceGetFieldValues": [
                SimpleNamespace(nvmlReturn=0 if instant else 3, value=SimpleNamespace(uiVal=instant)),
            ],
            "nvmlDeviceGetComputeRunningProcesses": [],
            "nvmlDeviceGetName": "a GPU",
            "nvmlDeviceGetEnforcedPowerLimit": 350_000,
            "nvmlDeviceGetApplicationsClock": lambda handle, kind: {self.NVML_CLOCK_SM: 1980}[kind],
            "nvmlSystemGetDriverVersion": "580",
            "nvmlDeviceGetMigMode": self.NVMLError_NotSupported("Not Supported"),
            "nvmlDeviceGetTemperature": 40,
        }
        for name, answer in (answers | functions).items():
            setattr(self, name, answer if callable(answer) else self._answering(answer))

    @staticmethod
    def _answering(answer: object):
        def function(*arguments):
            if isinstance(answer, Exception):
                raise answer
            return answer

        return function

    def open(self, monkeypatch, visible: str = "0,1") -> tuple[GpuSource, list[str]]:
        monkeypatch.setitem(sys.modules, "pynvml", self)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return open_nvml(0.0, 1.0)


def test_the_instant_power_field_is_preferred_and_a_missing_counter_is_none() -> None:
    assert NvmlReader(FakeNvml(81_500), 0).power_w() == 81.5
    reader = NvmlReader(FakeNvml(nvmlDeviceGetTotalEnergyConsumption=FakeNvml.NVMLError_NotSupported()), 0)
    assert reader.power_w() == 70.0
    assert reader.energy_mj() is None


def test_whatever_an_extra_of_nvml_raises_is_null_with_its_reason(monkeypatch) -> None:
    """A driver without …ComputeRunningProcesses_v3 raises what is no NVMLError."""
    nvml = FakeNvml(
        nvmlDeviceGetComputeRunningProcesses=FakeNvml.NVMLLibraryMismatchError("unversioned function called with v3"),
        nvmlDeviceGetEnforcedPowerLimit=FakeNvml.NVMLError_NotSupported("Not Supported"),
        nvmlSystemGetDriverVersion=UnicodeDecodeError("utf-8", b"x", 0, 1, "no text"),
        nvmlDeviceGetTemperature=AttributeError("no such function"),
        nvmlDeviceGetPowerUsage=TypeError("a struct changed"),
    )
    source, warnings = nvml.open(monkeypatch)
    first, _ = source.describe(set())
    assert (first["name"], first["clock_mhz"]) == ("a GPU", 1980) and first["mig"] is None and warnings == []
    assert first["reasons"] == {
        "power_limit_watts": "Not Supported",
        "driver": "'utf-8' codec can't decode byte 0x78 in position 0: no text",
        "temperature_c": "no such function",
        "other_processes": "unversioned function called with v3",
    }
    assert [first[name] for name in first["reasons"]] == [None] * 4
    figure = source.read(1.0)["gpu"]
    assert (figure.joules, figure.watts, figure.crosscheck, figure.energy_class) == (0.0, None, None, "measured")


@pytest.mark.parametrize(
    ("functions", "visible", "reason"),
    [
        (
            {"nvmlInit": FakeNvml.NVMLLibraryMismatchError("Driver/library version mismatch")},
            "0",
            "Driver/library version mismatch",
        ),
        ({"nvmlDeviceGetCount": OSError(5, "Input/output error")}, "0", "Input/output error"),
        ({"nvmlDeviceGetMigMode": [1, 1]}, "1", "GPU-1 is in MIG mode: hardware does not meter it apart from its neighbours"),
        ({}, "", "CUDA_VISIBLE_DEVICES names none"),
        ({"nvmlDeviceGetUUID": FakeNvml.NVMLError("GPU is lost")}, "1", "GPU 1: GPU is lost"),
    ],
)
def test_gpus_that_cannot_be_metered_say_why(monkeypatch, functions, visible: str, reason: str) -> None:
    with pytest.raises(OSError, match=f"^no GPU: {re.escape(reason)}$"):
        FakeNvml(**functions).open(monkeypatch, visible)


@pytest.mark.parametrize("name", ["NVIDIA GH200 480GB", "NVIDIA GB200", "NVIDIA GB300"])
def test_the_counter_of_a_grace_module_is_of_the_module(tmp_path, monkeypatch, name: str) -> None:
    """Its power field has a scope; the average of the GPU alone is no cross-check."""

    def fields(handle: int, asked: list) -> list:
        assert asked == [(186, 1)]
        return [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=600_000))]

    nvml = FakeNvml(nvmlDeviceGetName=name, nvmlDeviceGetFieldValues=fields)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    sampler = Sampler(json.loads(Energy(rapl_root="/nowhere", cpu_tdp_watts=50.0).model_dump_json()), tmp_path)
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda handle: 65_000
    figures = sampler.sample(time.monotonic())
    assert (figures["module"].joules, figures["module"].watts, figures["module"].energy_class) == (60.0, 600.0, "measured")
    assert [figures[part].joules for part in ("gpu", "cpu", "dram")] == [None] * 3
    assert figures["cpu"].reason == "counted in module: the GPU's counter is of CPU and memory, too"
    assert sampler.gpu_peak == 600.0
    reader = NvmlReader(FakeNvml(nvmlDeviceGetName=name), 0)
    with pytest.raises(OSError, match="the driver does not tell the module's power"):
        reader.power_w()
    assert NvmlReader(FakeNvml(nvmlDeviceGetName="NVIDIA B200"), 0).component == "gpu"


def test_counters_begin_when_what_takes_long_is_done(tmp_path: Path, monkeypatch) -> None:
    """Joules from a counter's first reading on are the stage's: CodeCarbon's look for the CPU, seconds long, is before it."""
    found: dict[str, float] = {}

    def slow(*args: object) -> None:
        while time.monotonic() == started:
            pass
        found["model"] = time.monotonic()
        raise ValueError("no model")

    def opened(now: float, gap: float) -> None:
        found["counters"] = now
        raise ReadingError("no GPU")

    monkeypatch.setattr("workflow_scripts.energy.sampler.power_model", slow)
    monkeypatch.setattr("workflow_scripts.energy.sampler.open_nvml", opened)
    started = time.monotonic()
    Sampler(json.loads(Energy(rapl_root="/nowhere").model_dump_json()), tmp_path)
    assert started < found["model"] <= found["counters"]


def test_a_lost_gpu_of_another_job_hides_no_other(monkeypatch) -> None:
    def handle(number: int) -> int:
        if number == 1:
            raise FakeNvml.NVMLError("GPU is lost")
        return number

    source, warnings = FakeNvml(nvmlDeviceGetHandleByIndex=handle).open(monkeypatch, "0")
    assert [device["uuid"] for device in source.describe(set())] == ["GPU-0"] and warnings == []


def test_a_counter_that_gave_no_first_reading_is_unavailable_for_good() -> None:
    trace = [{"t": t, "A.mj": 100_000 * t if t else "timeout", "A.w": 100.0} for t in range(4)]
    _, play = gpus(trace, "A")
    last = play()[-1]
    assert (last.joules, last.reason) == (None, "A: no reading at the start: timeout")


@pytest.mark.parametrize(
    ("script", "joules", "reason"),
    [
        ("echo 1200; echo 300", 1500.0, None),
        ("echo 0", None, "Slurm counted 0 J: the site has no AcctGatherEnergy plugin"),
        ("echo no job >&2; exit 1", None, "sstat gave no ConsumedEnergy: no job"),
    ],
)
def test_slurm_consumed_energy(tmp_path: Path, monkeypatch, script: str, joules, reason) -> None:
    tool = tmp_path / "sstat"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert consumed_energy().reason == "not in a Slurm job"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    figure = consumed_energy()
    assert (figure.joules, figure.reason) == (joules, reason)
