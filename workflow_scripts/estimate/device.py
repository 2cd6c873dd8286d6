"""The hardware that planned stages will run on, and what it does for its power where no past record tells."""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow_scripts.artefact import read_json
from workflow_scripts.energy.host import cpu_brand
from workflow_scripts.estimate.artefacts import UnpricedError
from workflow_scripts.estimate.history import Past, hardware
from workflow_scripts.estimate.pricing import Device, Range

# Dense bfloat16 (V100, T4: float16) tensor peaks of NVIDIA's data sheets [FLOP/s], by a part of the device's name.
PEAK_FLOPS = {
    "B200": 2.25e15,
    "GH200": 9.9e14,
    "H200": 9.9e14,
    "H100 PCIe": 7.6e14,
    "H100": 9.9e14,
    "A100": 3.12e14,
    "L40S": 3.62e14,
    "L40": 1.81e14,
    "L4": 1.21e14,
    "A40": 1.5e14,
    "A30": 1.65e14,
    "A10": 1.25e14,
    "V100": 1.25e14,
    "T4": 6.5e13,
}
# Share of the peak that is reached. Large models were trained at 0.21 to 0.46 of it (Chowdhery et al. 2022, table 3),
# small models and short rows at far less. Generation is bound by memory, so its share depends on the batch above all.
UTILISATION = Range(0.03, 0.2, 0.55)
GENERATING_UTILISATION = Range(0.0005, 0.01, 0.1)
# FLOP/s of one CPU core in float32: a scalar core at the low end, 32 FLOPs a cycle (AVX2) at 3 GHz at the high end.
CORE_FLOPS = Range(3e9, 2e10, 1e11)
GENERATING_CORE_FLOPS = Range(1e9, 6e9, 6e10)
MODELLED = Range(0.5, 1.0, 1.5)  # as energy.uncertainty_pct: CodeCarbon's modes differ by a factor of 2


@dataclass(frozen=True)
class Target:
    """Hardware of the planned stages: (CPU, number of CPUs, GPUs), the GPUs with their limits, and how it is known."""

    key: tuple[Any, ...]
    gpus: list[dict[str, Any]]
    rest_watts: float | None  # CPU and DRAM at rest
    origin: str


def target(prerun: Path, idle: Path) -> Target:
    """From the record of the prerun on this kind of host, else this host."""
    if prerun.is_file():
        record = read_json(prerun)
        watts = read_json(idle)["idle"]["watts"] if idle.is_file() else {}
        rest = [watts[name] for name in ("cpu", "dram") if watts.get(name) is not None]
        return Target(hardware(record), record["devices"], sum(rest) if rest else None, f"{prerun}")
    gpus = _local_gpus()
    key = (cpu_brand(), os.cpu_count(), tuple(sorted(str(gpu["name"]) for gpu in gpus)))
    return Target(key, gpus, None, "this host, as there is no prerun yet")


def device(where: Target, history: Sequence[Past], generates: bool) -> Device:
    """FLOP/s and W of one device. Raises UnpricedError for a GPU without a known peak or power limit."""
    if not where.gpus:
        return _cpu(where, history, generates)
    gpu = where.gpus[0]
    name, limit = str(gpu.get("name")), gpu.get("power_limit_watts")
    peak = next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)
    if peak is None or limit is None:
        raise UnpricedError(
            f"there is no history, and {'peak FLOP/s' if peak is None else 'power limit'} of {name} is not known"
        )
    share = GENERATING_UTILISATION if generates else UTILISATION
    rest = where.rest_watts or 0.0
    said = f"{limit:.0f} W limit" + (f" + {rest:.0f} W of the host at rest" if rest else ", without the host")
    return Device(
        share * peak,
        Range.exactly(limit + rest),
        f"{share.low:g} to {share.high:g} of {peak:.3g} FLOP/s of {name} at {said}",
    )


def _cpu(where: Target, history: Sequence[Past], generates: bool) -> Device:
    cores = where.key[1] or 1
    flops = (GENERATING_CORE_FLOPS if generates else CORE_FLOPS) * float(cores)
    powers = [joules / seconds for joules, seconds in (p.cost() for p in history if p.hardware == where.key)]
    if powers:
        watts = Range(min(powers), statistics.median(powers), max(powers))
        said = f"{watts.mid:.0f} W of {len(powers)} other stage(s) on this hardware"
    else:
        watts = MODELLED * modelled_watts()
        said = f"{watts.mid:.0f} W by CodeCarbon's CPU and RAM models, +/- 50 %"
    return Device(
        flops, watts, f"{flops.low / cores / 1e9:g} to {flops.high / cores / 1e9:g} GFLOP/s of {cores} core(s) at {said}"
    )


def modelled_watts() -> float:
    """CPU at full load and RAM of this host as CodeCarbon models them [W]."""
    import logging

    from codecarbon.core.cpu import DEFAULT_POWER_PER_CORE, TDP
    from codecarbon.core.util import count_physical_cpus
    from codecarbon.external.ram import RAM

    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    package = TDP().tdp
    processor = package * count_physical_cpus() if package else DEFAULT_POWER_PER_CORE * (os.cpu_count() or 1)
    return float(processor) + float(RAM(tracking_mode="machine").total_power().W)


def _local_gpus() -> list[dict[str, Any]]:
    """Name and power limit [W] of the GPUs that NVML sees here; empty without NVML."""
    import pynvml

    found: list[dict[str, Any]] = []
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            name, limit = pynvml.nvmlDeviceGetName(handle), None
            with contextlib.suppress(pynvml.NVMLError):
                limit = pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000
            found.append({"name": name, "power_limit_watts": limit})
        pynvml.nvmlShutdown()
    return found
