"""CPU and RAM as CodeCarbon models them, at every sample, from facts about the host that are found once.

In machine mode CodeCarbon 3.3.2 takes P_cpu = TDP x (0.1 + 0.9 load^3) and P_ram = 5 W for each of a guessed number of modules.
Beside it stands a second model as a cross-check: Green Algorithms (Lannelongue et al. 2021, doi:10.1002/advs.202100707) takes
P_cpu = TDP x load, with 12 W a core for a CPU that it does not know, and 0.3725 W/GB.
"""

from __future__ import annotations

import contextlib
import csv
import logging
import os
import platform
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil

from workflow_scripts import __version__
from workflow_scripts.artefact import ArtefactError, read_json, write_json
from workflow_scripts.energy.host import PowerModel, cpu_brand, has_hypervisor
from workflow_scripts.energy.sources.base import Figure
from workflow_scripts.energy.uncertainty import KWH

RAM_METHOD = "CodeCarbon RAM model"
CPU_METHOD = "CodeCarbon CPU model"
IDLE_FRACTION = 0.1  # of the TDP, in CodeCarbon's model of the CPU
GREEN_ALGORITHMS_W_PER_CORE = 12.0  # of a CPU that is not in its table
GREEN_ALGORITHMS_W_PER_GB = 0.3725
SHORTEST_S = (
    0.1  # CPU time is counted in 1/100 s: over less, the load is a coin's throw, and its cube is not the cube of its mean
)


@contextlib.contextmanager
def _whole_host() -> Iterator[None]:
    """CodeCarbon asks Slurm for the job's CPUs and memory where it sees a job; the model is of the host."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("SLURM_")}
    logger = logging.getLogger("codecarbon")
    logger.setLevel(logging.CRITICAL)
    logger.disabled = True
    try:
        yield
    finally:
        os.environ.update(hidden)


def find_power_model() -> PowerModel:
    """What CodeCarbon knows of this host. The search in its table of CPUs takes seconds."""
    with _whole_host():
        from codecarbon.core.cpu import DEFAULT_POWER_PER_CORE, TDP
        from codecarbon.core.util import count_physical_cpus, detect_cpu_model
        from codecarbon.external.ram import RAM

        name = detect_cpu_model() or cpu_brand() or "unknown"
        each = TDP.__new__(TDP)._get_cpu_power_from_registry(name)  # its constructor does not say whether it found the CPU
        gigabytes = psutil.virtual_memory().total / 2**30
        dram_watts = RAM()._calculate_ram_power(gigabytes)
    threads = psutil.cpu_count() or 1
    sockets = count_physical_cpus()
    return PowerModel(
        cpu_model=name,
        cpu_tdp_watts=each * sockets if each else float(DEFAULT_POWER_PER_CORE * threads),
        cpu_tdp_source="registry" if each else "fallback",
        sockets=sockets,
        cores=psutil.cpu_count(logical=False) or threads,
        threads=threads,
        memory_gb=gigabytes,
        dram_watts=dram_watts,
        dram_watts_source="codecarbon",
        virtual=has_hypervisor(),
    )


def power_model(options: dict[str, Any], remembered: Path) -> PowerModel:
    """The model of this host: found once and kept in a file, with what the section `energy` says instead.

    The first stage on a host (the prerun, in a campaign) finds it before it starts; a file of another host is not used.
    """
    model: PowerModel | None = None
    with contextlib.suppress(ArtefactError, TypeError, ValueError):
        model = PowerModel(**read_json(remembered))
    memory = psutil.virtual_memory().total / 2**30
    if model is None or model.threads != psutil.cpu_count() or abs(model.memory_gb - memory) > 0.01 * memory:
        model = find_power_model()
        with contextlib.suppress(OSError):  # the next stage finds it again
            write_json(remembered, asdict(model))
    changes: dict[str, Any] = {}
    if options["cpu_tdp_watts"] is not None:
        changes |= {"cpu_tdp_watts": options["cpu_tdp_watts"], "cpu_tdp_source": "configuration"}
    watts, per_gb = options["dram_watts"], options["dram_watts_per_gb"]
    if watts is not None or per_gb is not None:
        changes |= {
            "dram_watts": watts if watts is not None else per_gb * model.memory_gb,
            "dram_watts_source": "configuration",
        }
    return replace(model, **changes)


class ModelledPower:
    """CPU and RAM joules of the host since `begin` [s of the monotonic clock], by both models; they never fall."""

    def __init__(self, model: PowerModel, begin: float) -> None:
        self.model = model
        at_begin = psutil.cpu_times()
        with _whole_host():
            from codecarbon.external.hardware import CPU, MODE_CPU_LOAD, SystemCPULoadMeter

            class LoadMeter(SystemCPULoadMeter):
                load = 0.0

                def percent(self, prime_interval: float = 0.05) -> float:
                    percent = float(super().percent(prime_interval))
                    self.load = percent / 100
                    return percent

            self._meter = LoadMeter()
            self._cpu = CPU("", MODE_CPU_LOAD, model.cpu_model, model.cpu_tdp_watts)
        self._meter._last_times = at_begin
        self._cpu._cpu_load_meter = self._meter
        self._begin = self._last = begin
        self._watts = 0.0
        self._joules = {"cpu": 0.0, "dram": 0.0}
        self._second = {"cpu": 0.0, "dram": 0.0}
        known = model.cpu_tdp_source != "fallback"
        self._second_tdp = model.cpu_tdp_watts if known else GREEN_ALGORITHMS_W_PER_CORE * model.cores

    def read(self, now: float, final: bool = False) -> dict[str, Figure]:
        """Figures of `cpu` and `dram`; `idle_joules` is what the model gives a host at rest."""
        step = now - self._last
        if step >= SHORTEST_S or (final and step > 0):
            self._last = now
            self._watts = float(self._cpu.total_power().W)
            self._joules["cpu"] += self._watts * step
            self._joules["dram"] += self.model.dram_watts * step
            self._second["cpu"] += self._second_tdp * self._meter.load * step
            self._second["dram"] += GREEN_ALGORITHMS_W_PER_GB * self.model.memory_gb * step
        idle = {"cpu": IDLE_FRACTION * self.model.cpu_tdp_watts * (self._last - self._begin), "dram": self._joules["dram"]}
        watts = {"cpu": self._watts, "dram": self.model.dram_watts}
        return {
            name: Figure(
                self._joules[name], watts[name], method, "modelled", crosscheck=self._second[name], idle_joules=idle[name]
            )
            for name, method in (("cpu", CPU_METHOD), ("dram", RAM_METHOD))
        }

    def warnings(self) -> list[str]:
        """What makes this host's model doubtful."""
        model, found = self.model, []
        if model.cpu_tdp_source == "fallback":
            found.append(
                f"CodeCarbon does not know the CPU {model.cpu_model!r}: {model.cpu_tdp_watts:g} W is 4 W a thread: "
                "set energy.cpu_tdp_watts"
            )
        if model.virtual:
            found.append(
                "the host is a virtual machine: its CPUs and memory are part of a bigger host, whose power is not known"
            )
        if model.dram_watts > model.cpu_tdp_watts:
            found.append(
                f"the memory's {model.dram_watts:g} W exceed the CPU's {model.cpu_tdp_watts:g} W: "
                "set energy.dram_watts or energy.dram_watts_per_gb"
            )
        return found


def as_codecarbon(figures: dict[str, Figure]) -> tuple[float, float, float]:
    """Joules in CodeCarbon's columns gpu, cpu and dram: a component without a figure counts as 0, a module as GPU."""
    gpu = figures["gpu"]
    if gpu.joules is None and figures["cpu"].joules is None:  # else the module's CPU would be counted twice
        gpu = figures.get("module", gpu)
    return gpu.joules or 0.0, figures["cpu"].joules or 0.0, figures["dram"].joules or 0.0


def write_csv(
    path: Path, seconds: float, figures: dict[str, Figure], model: PowerModel, carbon: dict[str, Any], stage: str
) -> None:
    """One row in CodeCarbon's own columns: energies [kWh] of the host, mean powers [W], emissions [kg] without PUE."""
    with _whole_host():
        from codecarbon import __version__ as codecarbon_version
        from codecarbon.output_methods.emissions_data import EmissionsData
    gpu, cpu, dram = (joules / KWH for joules in as_codecarbon(figures))
    per_second = KWH / seconds if seconds > 0 else 0.0
    grams = carbon["intensity_g_per_kwh"]
    kilograms = (gpu + cpu + dram) * grams / 1000 if grams is not None else float("nan")
    row = EmissionsData(
        timestamp=time.strftime("%Y-%m-%dT%H:%M:%S"),
        project_name=stage,
        run_id=str(uuid.uuid4()),
        experiment_id=f"distillation-energy-benchmark {__version__}",
        duration=seconds,
        emissions=kilograms,
        emissions_rate=kilograms * per_second / KWH,
        cpu_power=cpu * per_second,
        gpu_power=gpu * per_second,
        ram_power=dram * per_second,
        cpu_energy=cpu,
        gpu_energy=gpu,
        ram_energy=dram,
        energy_consumed=gpu + cpu + dram,
        water_consumed=0.0,
        country_name="",
        country_iso_code=carbon["region"] or "",
        region="",
        cloud_provider="",
        cloud_region="",
        os=platform.platform(),
        python_version=platform.python_version(),
        codecarbon_version=codecarbon_version,
        cpu_count=model.threads,
        cpu_model=model.cpu_model,
        gpu_count=0,
        gpu_model="",
        longitude=float("nan"),
        latitude=float("nan"),
        ram_total_size=model.memory_gb,
        tracking_mode="machine",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, row.values)
        writer.writeheader()
        writer.writerow(row.values)
