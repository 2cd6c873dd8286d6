"""NVIDIA GPUs through NVML: total energy counter and integrated power of exactly the devices that the job may use."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from workflow_scripts.energy.sources.base import Counter, CounterError, Figure, PowerIntegral, ReadingError, guarded

COUNTER_METHOD = "NVML total energy counter"
POWER_METHOD = "NVML power over time"
DIVERGENCE = 0.05
DIVERGENCE_AFTER_J = 500.0
IN_MODULE = "counted in module: the GPU's counter is of CPU and memory, too"
_GRACE = re.compile(r"\bG[HB][23]00\b")  # Grace Hopper and Grace Blackwell
_MIG = "hardware does not meter it apart from its neighbours"


class GpuReader(Protocol):
    """Readings of one device; each may raise anything."""

    uuid: str
    component: str  # what its readings are of: `gpu`, or `module` with the CPU and the memory

    def energy_mj(self) -> int | None:
        """Total energy counter [mJ]; None when the device has none."""

    def power_w(self) -> float:
        """Power now [W]: the instant field where there is one, else the device's running average."""

    def processes(self) -> list[int]:
        """Process ids with a context on the device."""

    def describe(self) -> dict[str, Any]:
        """Name, power limit [W], driver, MIG mode, temperature [C]; null where not known, the reason in `reasons`."""


def resolve_devices(environment: Mapping[str, str], uuids: Sequence[str]) -> tuple[list[int], list[str]]:
    """Which of the host's GPUs, whose UUIDs are in the order of the bus, the job may use: their numbers, and warnings.

    As CUDA reads CUDA_VISIBLE_DEVICES with CUDA_DEVICE_ORDER=PCI_BUS_ID, which stages get: indices, UUIDs or prefixes that
    one UUID alone has; the first entry that is no device hides those after it; a device counts once. Without it Slurm's job
    GPUs, else all with a warning. A MIG instance has no energy of its own in hardware: raises ReadingError.
    """
    every = list(range(len(uuids)))
    value = environment.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        slurm = environment.get("SLURM_STEP_GPUS") or environment.get("SLURM_JOB_GPUS")
        if slurm is None:
            return every, ["CUDA_VISIBLE_DEVICES is not set: all GPUs of the host are counted"]
        given = [int(item) for item in slurm.split(",") if item.strip().isdecimal()]
        # numbers of the node; where the job's cgroup hides the others, those that are left are numbered anew
        return ([n for n in every if n in given] if max(given, default=0) < len(uuids) else every), []
    found: list[int] = []
    for item in (part.strip() for part in value.split(",")):
        if item.startswith("MIG"):
            raise ReadingError(f"{item} is a MIG instance: {_MIG}")
        number = re.match(r"\+?([0-9]+)", item)
        named = [n for n in every if uuids[n].startswith(item)] if item.startswith("GPU-") else []
        if number and int(number[1]) < len(uuids):
            found.append(int(number[1]))
        elif len(named) == 1:
            found += named
        else:
            hidden = bool(item) and item not in ("-1", "NoDevFiles")
            said = f"CUDA_VISIBLE_DEVICES={value}: {item} is no GPU here: it and what follows it are not visible to CUDA"
            return list(dict.fromkeys(found)), [said] if hidden else []
    return list(dict.fromkeys(found)), []


class GpuSource:
    """Sums devices. A device that fails is named; the others keep their exact figures, the sum is unavailable."""

    def __init__(self, readers: Sequence[GpuReader], now: float, max_gap_s: float) -> None:
        if not readers:
            raise ReadingError("CUDA_VISIBLE_DEVICES names none")
        self._devices = [_Device(reader, now, max_gap_s) for reader in readers]

    def read(self, now: float) -> dict[str, Figure]:
        """The figure by its component; `crosscheck` is the integrated power where the counter is the figure."""
        for device in self._devices:
            device.advance(now)
        failed = [d for d in self._devices if d.reason is not None]
        watts, integrated = [d.watts for d in self._devices], [d.integrated() for d in self._devices]
        working = [d for d in self._devices if d.reason is None]
        counted = all(d.counter is not None for d in self._devices)
        figure = Figure(
            joules=None if failed else sum(d.joules() for d in working),
            watts=None if failed else _sum(watts),
            method=COUNTER_METHOD if counted else POWER_METHOD,
            energy_class="unavailable" if failed else "measured" if counted else "integrated",
            reason="; ".join(f"{d.reader.uuid}: {d.reason}" for d in failed) or None,
            devices={d.reader.uuid: d.joules() for d in working},
            crosscheck=_sum(integrated) if counted and not failed else None,
            gap_joules=0.0 if counted else sum(d.integral.gap_joules for d in working),
        )
        if failed:
            figure.method = None
        figure.warnings = [w for d in self._devices if (w := d.divergence())]
        return {"module" if any(d.reader.component == "module" for d in self._devices) else "gpu": figure}

    def describe(self, job_pids: set[int]) -> list[dict[str, Any]]:
        """What the record says of each device, with the processes on it that are not the job's."""
        return [{"uuid": d.reader.uuid, **_described(d.reader, job_pids)} for d in self._devices]


class _Device:
    def __init__(self, reader: GpuReader, now: float, max_gap_s: float) -> None:
        self.reader = reader
        self.integral = PowerIntegral(max_gap_s)
        self.counter: Counter | None = None
        self.reason: str | None = None
        self.lost: str | None = None  # why what it used is not known any more, whatever it reads later
        try:
            start = guarded(reader.energy_mj)
        except ReadingError as error:
            self.reason = self.lost = f"no reading at the start: {error}"
            return
        if start is not None:
            self.counter = Counter(1e-3)
            self.counter.advance(now, start)
        self._read_power(now)
        if start is None and self.watts is None:
            self.lost = self.reason = f"no reading at the start: {self.power_reason}"

    def advance(self, now: float) -> None:
        """A failed counter recovers by itself (it went on counting); a failed power sample leaves a gap."""
        self._read_power(now)
        if self.counter is None:
            self.reason = self.lost or self.power_reason
            return
        self.reason = self.lost
        try:
            raw = guarded(self.reader.energy_mj)
            if raw is None:
                raise ReadingError("the total energy counter is gone")
            self.counter.advance(now, raw)
        except CounterError as error:
            self.reason = self.lost = str(error)
        except ReadingError as error:
            self.reason = self.lost or str(error)

    def _read_power(self, now: float) -> None:
        self.watts: float | None = None
        self.power_reason: str | None = None
        try:
            self.watts = guarded(self.reader.power_w)
        except ReadingError as error:
            self.power_reason = str(error)
        else:
            self.integral.advance(now, self.watts)

    def joules(self) -> float:
        return self.counter.joules if self.counter is not None else self.integral.joules + self.integral.gap_joules

    def integrated(self) -> float | None:
        """Joules by power; None while it cannot be read."""
        return self.integral.joules + self.integral.gap_joules if self.power_reason is None else None

    def divergence(self) -> str | None:
        """Counter and integrated power should agree; published cases differ by 1 % under load and 40 % at idle."""
        other = self.integrated()
        if self.counter is None or self.reason or other is None or self.counter.joules < DIVERGENCE_AFTER_J:
            return None
        share = abs(other - self.counter.joules) / self.counter.joules
        if share <= DIVERGENCE:
            return None
        return (
            f"{self.reader.uuid}: counter {self.counter.joules:.0f} J and integrated power {other:.0f} J differ by {share:.0%}"
        )


def _sum(values: Sequence[float | None]) -> float | None:
    """Sum; None as soon as one value is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _described(reader: GpuReader, job_pids: set[int]) -> dict[str, Any]:
    found: dict[str, Any] = {"reasons": {}}
    try:
        found |= guarded(reader.describe)
    except ReadingError as error:
        found["reasons"]["name"] = str(error)
    try:
        found["other_processes"] = sorted(set(guarded(reader.processes)) - job_pids)
    except ReadingError as error:
        found["other_processes"], found["reasons"]["other_processes"] = None, str(error)
    return found if found["reasons"] else {name: value for name, value in found.items() if name != "reasons"}


class NvmlReader:
    """One device of the NVML library."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self.uuid: str = nvml.nvmlDeviceGetUUID(handle)
        self.component = "gpu"
        with contextlib.suppress(ReadingError):  # describe() says that it has no name
            self.component = "module" if _GRACE.search(guarded(nvml.nvmlDeviceGetName, handle)) else "gpu"
        # the field without a scope is of the GPU alone, as is its average
        field = nvml.NVML_FI_DEV_POWER_INSTANT
        self._instant = (field, nvml.NVML_POWER_SCOPE_MODULE) if self.component == "module" else field

    def energy_mj(self) -> int | None:
        """See GpuReader."""
        try:
            return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        except (self._nvml.NVMLError_NotSupported, self._nvml.NVMLError_FunctionNotFound):
            return None

    def power_w(self) -> float:
        """See GpuReader."""
        nvml = self._nvml
        with contextlib.suppress(nvml.NVMLError):  # a driver that is older than the field
            field = nvml.nvmlDeviceGetFieldValues(self._handle, [self._instant])[0]
            if field.nvmlReturn == nvml.NVML_SUCCESS and field.value.uiVal:
                return float(field.value.uiVal) / 1000
        if self.component == "module":
            raise ReadingError("the driver does not tell the module's power")
        return float(nvml.nvmlDeviceGetPowerUsage(self._handle)) / 1000

    def processes(self) -> list[int]:
        """See GpuReader."""
        return [int(p.pid) for p in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)]

    def describe(self) -> dict[str, Any]:
        """See GpuReader."""
        nvml, handle = self._nvml, self._handle
        questions: dict[str, Callable[[], Any]] = {
            "name": lambda: nvml.nvmlDeviceGetName(handle),
            "power_limit_watts": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
            "clock_mhz": lambda: nvml.nvmlDeviceGetApplicationsClock(handle, nvml.NVML_CLOCK_SM),
            "driver": nvml.nvmlSystemGetDriverVersion,
            "mig": self.mig,
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        }
        found: dict[str, Any] = {}
        reasons: dict[str, str] = {}
        for name, ask in questions.items():
            try:
                found[name] = guarded(ask)
            except ReadingError as error:
                found[name], reasons[name] = None, str(error)
        return found | {"reasons": reasons}

    def mig(self) -> bool | None:
        """Whether the device is cut into MIG instances; None where it cannot be."""
        try:
            return bool(self._nvml.nvmlDeviceGetMigMode(self._handle)[0])
        except (self._nvml.NVMLError_NotSupported, self._nvml.NVMLError_FunctionNotFound):
            return None


def open_nvml(now: float, max_gap_s: float) -> tuple[GpuSource, list[str]]:
    """The job's GPUs, and warnings. Raises ReadingError with the reason: no driver, no device, a MIG instance."""
    try:
        return guarded(_open, now, max_gap_s)
    except ReadingError as error:
        raise ReadingError(f"no GPU: {error}") from error


def _open(now: float, max_gap_s: float) -> tuple[GpuSource, list[str]]:
    import pynvml

    pynvml.nvmlInit()
    every: list[NvmlReader | ReadingError] = []
    for number in range(pynvml.nvmlDeviceGetCount()):
        try:
            every.append(guarded(lambda n=number: NvmlReader(pynvml, pynvml.nvmlDeviceGetHandleByIndex(n))))
        except ReadingError as error:  # it may be another job's
            every.append(error)
    numbers, warnings = resolve_devices(os.environ, [found.uuid if isinstance(found, NvmlReader) else "" for found in every])
    readers = []
    for number in numbers:
        reader = every[number]
        if isinstance(reader, ReadingError):
            raise ReadingError(f"GPU {number}: {reader}")
        if reader.mig():
            raise ReadingError(f"{reader.uuid} is in MIG mode: {_MIG}")
        readers.append(reader)
    return GpuSource(readers, now, max_gap_s), warnings
