"""Where joules come from. Every source gives cumulative joules since it was started, or says why it cannot.

measured    a hardware counter          RAPL (CPU packages, DRAM), NVML total energy (GPU)
integrated  power samples over time     NVML power (GPU)
modelled    load or time times a model  CodeCarbon (CPU, RAM)
"""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass
class Figure:
    """Cumulative energy of one component [J], its newest power [W], and how they were obtained."""

    joules: float | None
    watts: float | None = None
    method: str = ""
    energy_class: str = "unavailable"
    reason: str | None = None
    devices: dict[str, float] = field(default_factory=dict)
    wraps: int = 0
    crosscheck: float | None = None


class Source(Protocol):
    """What the meter needs of a source."""

    def read(self) -> dict[str, Figure]:
        """Current figures by component: gpu, cpu, dram."""

    def close(self) -> None:
        """Release what the source holds."""


def unavailable(reason: str) -> Figure:
    """A figure that could not be had, with the reason."""
    return Figure(None, reason=reason)


class RaplSource:
    """CPU package and DRAM counters of Linux powercap, per zone; a counter may wrap once between two reads.

    `psys` covers packages and more, so it is never added to them. Raises OSError with the reason when nothing is readable.
    """

    def __init__(self, root: Path) -> None:
        self._zones: list[_RaplZone] = []
        if not root.is_dir():
            raise OSError(f"no RAPL: {root} does not exist")
        for path in sorted(root.rglob("energy_uj") if not root.is_symlink() else []):
            zone = _RaplZone(path.parent)
            if zone.component is not None:
                zone.advance()
                self._zones.append(zone)
        if not self._zones:
            raise OSError(f"no RAPL: {root} has no package or dram zone")

    def read(self) -> dict[str, Figure]:
        """Joules of all zones by component; a zone that stopped answering makes its component unavailable."""
        figures: dict[str, Figure] = {}
        for zone in self._zones:
            assert zone.component is not None
            figure = figures.setdefault(zone.component, Figure(0.0, None, "RAPL", "measured"))
            try:
                zone.advance()
            except OSError as error:
                figures[zone.component] = unavailable(f"RAPL zone {zone.label}: {error.strerror}")
                continue
            if figure.joules is not None:
                figure.joules += zone.joules
                figure.devices[zone.label] = zone.joules
                figure.wraps += zone.wraps
        return figures

    def close(self) -> None:
        """Nothing is held open."""


class _RaplZone:
    def __init__(self, folder: Path) -> None:
        name = (folder / "name").read_text().strip()
        self.label = f"{folder.name} {name}"
        self.component = "cpu" if name.startswith("package") else "dram" if name == "dram" else None
        self._counter = folder / "energy_uj"
        self._range = int((folder / "max_energy_range_uj").read_text())
        self._last: int | None = None
        self.joules, self.wraps = 0.0, 0

    def advance(self) -> None:
        value = int(self._counter.read_text())
        if self._last is not None:
            step = value - self._last
            if step < 0:
                step += self._range
                self.wraps += 1
            self.joules += step * 1e-6
        self._last = value


class NvmlSource:
    """GPUs that the job may use, by UUID: the total energy counter where there is one, else power over time.

    Raises OSError with the reason when there is no driver or no GPU.
    """

    def __init__(self) -> None:
        import pynvml

        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise OSError(f"no GPU: {error}") from None
        self._devices = [_NvmlDevice(pynvml, handle) for handle in visible_devices(pynvml)]
        if not self._devices:
            raise OSError("no GPU: CUDA_VISIBLE_DEVICES names none")

    def read(self) -> dict[str, Figure]:
        """Sum over devices; one device that fails makes the sum unavailable, the others keep their own figures."""
        now = time.monotonic()
        figure = Figure(0.0, 0.0, "NVML total energy counter", "measured")
        integrated = 0.0
        for device in self._devices:
            device.advance(now)
            if device.joules is None:
                figure.joules, figure.reason = None, f"{device.uuid}: {device.reason}"
                figure.energy_class = "unavailable"
                continue
            figure.devices[device.uuid] = device.joules
            integrated += device.integrated
            if figure.joules is not None:
                figure.joules += device.joules
                figure.watts = (figure.watts or 0.0) + (device.watts or 0.0)
                if not device.has_counter:
                    figure.method, figure.energy_class = "NVML power over time", "integrated"
        figure.crosscheck = integrated
        return {"gpu": figure}

    def describe(self) -> list[dict[str, Any]]:
        """UUID, name, power limit [W], driver and temperature [C] of each device."""
        return [device.describe() for device in self._devices]

    def close(self) -> None:
        """Leave NVML."""
        self._nvml.nvmlShutdown()


class _NvmlDevice:
    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self.uuid: str = nvml.nvmlDeviceGetUUID(handle)
        self.reason: str | None = None
        self.watts: float | None = None
        self.integrated = 0.0
        self.joules: float | None = 0.0
        self._time: float | None = None
        try:
            self._start = nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            self.has_counter = True
        except nvml.NVMLError:
            self._start, self.has_counter = 0, False

    def advance(self, now: float) -> None:
        try:
            watts = self._nvml.nvmlDeviceGetPowerUsage(self._handle) / 1000
            if self._time is not None:
                self.integrated += (watts + (self.watts if self.watts is not None else watts)) / 2 * (now - self._time)
            self.watts, self._time = watts, now
            if self.has_counter:
                used = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) - self._start
                self.joules = used / 1000
            else:
                self.joules = self.integrated
        except self._nvml.NVMLError as error:
            self.joules, self.reason = None, str(error)

    def describe(self) -> dict[str, Any]:
        nvml, handle = self._nvml, self._handle
        return {
            "uuid": self.uuid,
            "name": nvml.nvmlDeviceGetName(handle),
            "power_limit_watts": nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
            "driver": nvml.nvmlSystemGetDriverVersion(),
            "temperature_c": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        }


def visible_devices(nvml: Any) -> list[Any]:
    """NVML handles of the GPUs in CUDA_VISIBLE_DEVICES (index or UUID form); all GPUs when it is unset.

    A MIG instance has no energy figure of its own in hardware: raises OSError with that reason.
    """
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    handles = []
    for item in (part.strip() for part in value.split(",") if part.strip()):
        if item.startswith("MIG"):
            raise OSError(f"no GPU figure: {item} is a MIG instance, which hardware does not meter by itself")
        try:
            by_index = item.isdigit()
            handles.append(nvml.nvmlDeviceGetHandleByIndex(int(item)) if by_index else nvml.nvmlDeviceGetHandleByUUID(item))
        except nvml.NVMLError as error:
            raise OSError(f"no GPU figure: CUDA_VISIBLE_DEVICES names {item}: {error}") from None
    return handles


class CodeCarbonSource:
    """CPU and RAM as CodeCarbon models them, in machine mode, from a thread that starts beside the stage.

    Starting takes a second or two; the energy of that head is extrapolated at the mean power measured after it and reported
    in `head_joules`, so that neither the stage waits nor its first seconds are lost.
    """

    SETTLE_S = 3.0

    def __init__(self, options: dict[str, Any], csv: Path) -> None:
        self._options, self._csv = options, csv
        self._tracker: Any = None
        self._totals: Any = None
        self._failure: str | None = None
        self._begin = time.monotonic()
        self._ready_at: float | None = None
        self._measured_at = 0.0
        self._head: dict[str, float] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._start, name="codecarbon", daemon=True)
        self._thread.start()

    def _start(self) -> None:
        try:
            from codecarbon import EmissionsTracker, OfflineEmissionsTracker, OutputMethod

            logging.getLogger("codecarbon").setLevel(logging.CRITICAL)  # it speaks before it has read log_level
            from codecarbon.output_methods.base_output import BaseOutput

            source = self

            class Totals(BaseOutput):
                def live_out(self, total: Any, delta: Any) -> None:
                    source._keep(total)

                def out(self, total: Any, delta: Any) -> None:
                    source._keep(total)

            self._csv.parent.mkdir(parents=True, exist_ok=True)
            shared: dict[str, Any] = {
                "measure_power_secs": 1,
                "api_call_interval": 1,
                "output_methods": [OutputMethod.CSV],
                "output_handlers": [Totals()],
                "output_dir": str(self._csv.parent),
                "output_file": self._csv.name,
                "log_level": "critical",
                "tracking_mode": "machine",
                "allow_multiple_runs": True,
                "pue": 1.0,
            }
            if self._options["offline_mode"]:
                tracker = OfflineEmissionsTracker(
                    country_iso_code=self._options["country_iso_code"], region=self._options["region"], **shared
                )
            else:
                tracker = EmissionsTracker(**shared)
            tracker.start()
            self._ready_at = time.monotonic()
            self._tracker = tracker
        except Exception as error:  # the stage must run without CodeCarbon; the record carries the reason
            self._failure = f"CodeCarbon: {type(error).__name__}: {error}"

    def _keep(self, total: Any) -> None:
        with self._lock:
            self._totals, self._measured_at = total, time.monotonic()

    def read(self) -> dict[str, Figure]:
        """CPU and RAM joules since the stage began, the head included."""
        with self._lock:
            totals, measured_at = self._totals, self._measured_at
        if totals is None or self._ready_at is None or measured_at - self._ready_at < 0.5:
            reason = self._failure or "unavailable: CodeCarbon had not measured yet"
            return {"cpu": unavailable(reason), "dram": unavailable(reason)}
        covered = measured_at - self._ready_at
        figures = {}
        for component, kwh, name in (
            ("cpu", totals.cpu_energy, self._cpu_method()),
            ("dram", totals.ram_energy, "CodeCarbon RAM model"),
        ):
            joules = kwh * 3.6e6
            if component not in self._head or covered < self.SETTLE_S:
                self._head[component] = joules / covered * (self._ready_at - self._begin)
            figures[component] = Figure(joules + self._head[component], joules / covered, name, "modelled")
        return figures

    def _cpu_method(self) -> str:
        modes = [getattr(h, "_mode", "") for h in getattr(self._tracker, "_hardware", []) if type(h).__name__ == "CPU"]
        return f"CodeCarbon {modes[0]}" if modes and modes[0] else "CodeCarbon"

    @property
    def head_joules(self) -> dict[str, float]:
        """Extrapolated joules of the seconds before CodeCarbon measured, by component."""
        return dict(self._head)

    def emissions(self) -> dict[str, Any] | None:
        """CodeCarbon's own totals: energy_kwh, emissions_kg, country, region; None when it measured nothing."""
        with self._lock:
            totals = self._totals
        if totals is None:
            return None
        return {
            "energy_kwh": totals.energy_consumed,
            "emissions_kg": totals.emissions,
            "country": totals.country_iso_code,
            "region": totals.region or None,
        }

    def close(self) -> None:
        """Take the last measurement and write CodeCarbon's row; a tracker that is still starting is left behind."""
        if self._tracker is not None:
            self._tracker.stop()
