"""NVIDIA GPUs through NVML: total energy counter and integrated power of exactly the devices that the job may use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from workflow_scripts.energy.sources.base import Counter, CounterError, Figure, PowerIntegral

COUNTER_METHOD = "NVML total energy counter"
POWER_METHOD = "NVML power over time"
DIVERGENCE = 0.05
DIVERGENCE_AFTER_J = 500.0


class GpuError(OSError):
    """A GPU reading that failed, with the library's reason."""


class GpuReader(Protocol):
    """Readings of one device; each may raise GpuError."""

    uuid: str

    def energy_mj(self) -> int | None:
        """Total energy counter [mJ]; None when the device has none."""

    def power_w(self) -> float:
        """Power now [W]: the instant field where there is one, else the device's running average."""

    def processes(self) -> list[int]:
        """Process ids with a context on the device."""

    def describe(self) -> dict[str, Any]:
        """Name, power limit [W], driver, MIG mode, temperature [C]."""


@dataclass
class Resolution:
    """Which devices: indices or UUIDs as NVML takes them; None is all. `warning` goes into the record."""

    devices: list[int | str] | None
    warning: str | None = None


def resolve_devices(environment: Mapping[str, str]) -> Resolution:
    """Which GPUs the job may use: CUDA_VISIBLE_DEVICES, else Slurm's job GPUs, else all with a warning.

    Forms as in the CUDA documentation: indices, UUIDs or prefixes of them; the first invalid entry hides those after it; an
    empty value, `-1` and `NoDevFiles` mean none. A MIG instance has no energy of its own in hardware: raises OSError.
    """
    value = environment.get("CUDA_VISIBLE_DEVICES")
    slurm = environment.get("SLURM_STEP_GPUS") or environment.get("SLURM_JOB_GPUS")
    if value is None and slurm:
        value = slurm
    if value is None:
        return Resolution(None, "CUDA_VISIBLE_DEVICES is not set: all GPUs of the host are counted")
    found: list[int | str] = []
    for item in (part.strip() for part in value.split(",")):
        if item.startswith("MIG"):
            raise OSError(f"{item} is a MIG instance: hardware does not meter it apart from its neighbours")
        if item.isdigit():
            found.append(int(item))
        elif item.startswith("GPU-"):
            found.append(item)
        else:
            break
    return Resolution(found)


class GpuSource:
    """Sums devices. A device that fails is named; the others keep their exact figures, the sum is unavailable."""

    def __init__(self, readers: list[GpuReader], now: float, max_gap_s: float) -> None:
        if not readers:
            raise OSError("no GPU: CUDA_VISIBLE_DEVICES names none")
        self._devices = [_Device(reader, now, max_gap_s) for reader in readers]

    def read(self, now: float) -> dict[str, Figure]:
        """The `gpu` figure; `crosscheck` is the integrated power where the counter is the figure."""
        for device in self._devices:
            device.advance(now)
        failed = [d for d in self._devices if d.reason is not None]
        working = [d for d in self._devices if d.reason is None]
        counted = all(d.counter is not None for d in self._devices)
        figure = Figure(
            joules=None if failed else sum(d.joules() for d in working),
            watts=sum(d.watts for d in working) if not failed else None,
            method=COUNTER_METHOD if counted else POWER_METHOD,
            energy_class="unavailable" if failed else "measured" if counted else "integrated",
            reason="; ".join(f"{d.reader.uuid}: {d.reason}" for d in failed) or None,
            devices={d.reader.uuid: d.joules() for d in working},
            crosscheck=sum(d.integral.joules + d.integral.gap_joules for d in working) if counted and not failed else None,
            gap_joules=0.0 if counted else sum(d.integral.gap_joules for d in working),
        )
        if failed:
            figure.method = None
        figure.warnings = [w for d in self._devices if (w := d.divergence())]
        return {"gpu": figure}

    def describe(self, job_pids: set[int]) -> list[dict[str, Any]]:
        """What the record says of each device, with the processes on it that are not the job's."""
        return [{"uuid": d.reader.uuid, **_described(d.reader, job_pids)} for d in self._devices]

    def close(self) -> None:
        """Nothing is held by the source; the library is left by its opener."""


class _Device:
    def __init__(self, reader: GpuReader, now: float, max_gap_s: float) -> None:
        self.reader = reader
        self.integral = PowerIntegral(max_gap_s)
        self.reason: str | None = None
        self.watts = 0.0
        self.counter: Counter | None = None
        try:
            start = reader.energy_mj()
            if start is not None:
                self.counter = Counter(1e-3)
                self.counter.advance(now, start)
            self.integral.advance(now, reader.power_w())
        except GpuError as error:
            self.reason = str(error)

    def advance(self, now: float) -> None:
        """A failed counter recovers by itself (it went on counting); a failed power sample leaves a gap."""
        try:
            self.watts = self.reader.power_w()
            self.integral.advance(now, self.watts)
            if self.counter is not None:
                raw = self.reader.energy_mj()
                if raw is None:
                    raise GpuError("the total energy counter is gone")
                self.counter.advance(now, raw)
        except CounterError as error:
            self.reason = str(error)
        except GpuError as error:
            self.reason = str(error)
        else:
            if self.reason is not None and "went back" not in self.reason:
                self.reason = None

    def joules(self) -> float:
        return self.counter.joules if self.counter is not None else self.integral.joules + self.integral.gap_joules

    def divergence(self) -> str | None:
        """Counter and integrated power should agree; published cases differ by 1 % under load and 40 % at idle."""
        if self.counter is None or self.reason is not None or self.counter.joules < DIVERGENCE_AFTER_J:
            return None
        other = self.integral.joules + self.integral.gap_joules
        share = abs(other - self.counter.joules) / self.counter.joules
        if share <= DIVERGENCE:
            return None
        return (
            f"{self.reader.uuid}: counter {self.counter.joules:.0f} J and integrated power {other:.0f} J differ by {share:.0%}"
        )


def _described(reader: GpuReader, job_pids: set[int]) -> dict[str, Any]:
    try:
        return {**reader.describe(), "other_processes": sorted(set(reader.processes()) - job_pids)}
    except GpuError as error:
        return {"reason": str(error)}


class NvmlReader:
    """One device of the NVML library."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self.uuid: str = nvml.nvmlDeviceGetUUID(handle)

    def energy_mj(self) -> int | None:
        """See GpuReader."""
        try:
            return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        except self._nvml.NVMLError_NotSupported:
            return None
        except self._nvml.NVMLError as error:
            raise GpuError(str(error)) from None

    def power_w(self) -> float:
        """See GpuReader."""
        nvml = self._nvml
        try:
            field = nvml.nvmlDeviceGetFieldValues(self._handle, [nvml.NVML_FI_DEV_POWER_INSTANT])[0]
            if field.nvmlReturn == nvml.NVML_SUCCESS and field.value.uiVal:
                return float(field.value.uiVal) / 1000
            return float(nvml.nvmlDeviceGetPowerUsage(self._handle)) / 1000
        except nvml.NVMLError as error:
            raise GpuError(str(error)) from None

    def processes(self) -> list[int]:
        """See GpuReader."""
        try:
            return [int(p.pid) for p in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)]
        except self._nvml.NVMLError as error:
            raise GpuError(str(error)) from None

    def describe(self) -> dict[str, Any]:
        """See GpuReader; a property that the device does not have is null."""
        nvml, handle = self._nvml, self._handle

        def ask(function: Any, *arguments: Any) -> Any:
            try:
                return function(handle, *arguments)
            except nvml.NVMLError:
                return None

        limit = ask(nvml.nvmlDeviceGetEnforcedPowerLimit)
        mig = ask(nvml.nvmlDeviceGetMigMode)
        return {
            "name": ask(nvml.nvmlDeviceGetName),
            "power_limit_watts": limit / 1000 if limit is not None else None,
            "driver": nvml.nvmlSystemGetDriverVersion(),
            "mig": bool(mig[0]) if mig is not None else None,
            "temperature_c": ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        }


def open_nvml(now: float, max_gap_s: float) -> tuple[GpuSource, str | None]:
    """The job's GPUs and a warning, if any. Raises OSError with the reason when there is no driver or no device."""
    import pynvml

    resolution = resolve_devices(os.environ)
    try:
        pynvml.nvmlInit()
        wanted = resolution.devices if resolution.devices is not None else list(range(pynvml.nvmlDeviceGetCount()))
        handles = [
            pynvml.nvmlDeviceGetHandleByIndex(d) if isinstance(d, int) else pynvml.nvmlDeviceGetHandleByUUID(d) for d in wanted
        ]
        readers: list[GpuReader] = [NvmlReader(pynvml, handle) for handle in handles]
    except pynvml.NVMLError as error:
        raise OSError(f"no GPU: {error}") from None
    return GpuSource(readers, now, max_gap_s), resolution.warning
