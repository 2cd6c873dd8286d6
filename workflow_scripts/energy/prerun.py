"""prerun: does the meter work on this kind of host, and is it the host that was asked for?

    python -m workflow_scripts.energy.prerun --settings JSON --options JSON --out FILE

Writes idle baseline, burn-in through the whole meter, sampling check and hardware check. A failed check exits 1 with the
number and the bound, and stops everything that depends on it. Without a GPU the GPU parts say so; nothing is 0 W by default.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from workflow_scripts.artefact import read_json, write_json
from workflow_scripts.energy.meter import provenance
from workflow_scripts.energy.sources import NvmlSource
from workflow_scripts.settings.slices import PrerunSlice

SAMPLING_TRIALS = 3
BURN = "import time; e = time.monotonic() + {seconds}\nwhile time.monotonic() < e: sum(range(10000))"


def main() -> int:
    """Run all checks; returns 1 when one failed."""
    parser = argparse.ArgumentParser(prog="workflow_scripts.energy.prerun", allow_abbrev=False)
    for name in ("settings", "options", "out"):
        parser.add_argument(f"--{name}", required=True)
    arguments = parser.parse_args()
    settings = PrerunSlice.model_validate_json(arguments.settings)
    options = json.loads(arguments.options)
    result: dict[str, Any] = {
        "host": provenance("")["host"],
        "hardware": check_hardware(settings),
        "idle": idle_baseline(settings),
        "sampling": check_sampling(settings, options),
    }
    failed = [check["failure"] for check in (result["hardware"], result["sampling"]) if check["failure"]]
    result["passed"] = not failed
    if failed:
        print("\n".join(f"error: prerun: {line}" for line in failed), file=sys.stderr)
        return 1
    write_json(Path(arguments.out), result)
    return 0


def idle_baseline(settings: PrerunSlice) -> dict[str, Any]:
    """CPU load [%] and, where there is one, GPU power [W] of the host at rest; `stable` or why not."""
    try:
        gpu: NvmlSource | None = NvmlSource()
        gpu_reason = None
    except OSError as error:
        gpu, gpu_reason = None, str(error)
    load, power = [], []
    end = time.monotonic() + settings.prerun.idle_seconds
    while time.monotonic() < end:
        load.append(psutil.cpu_percent(interval=0.25))
        if gpu is not None and (watts := gpu.read()["gpu"].watts) is not None:
            power.append(watts)
    bound = settings.prerun.max_idle_cpu_percent
    mean = statistics.mean(load)
    reason = None if mean <= bound else f"CPU load {mean:.0f} %, bound {bound:.0f} %: other work runs on this host"
    return {
        "seconds": settings.prerun.idle_seconds,
        "cpu_load_percent": _spread(load),
        "gpu_watts": _spread(power) if power else None,
        "gpu_reason": gpu_reason,
        "stable": reason is None,
        "reason": reason,
    }


def check_sampling(settings: PrerunSlice, options: dict[str, Any]) -> dict[str, Any]:
    """The same load through the whole meter at the configured period and at half of it: the mean powers must agree.

    Other work on the host changes the power between the two loads by chance, a fault of the sampling does so every time;
    so a disagreement is tried again, twice at most, and every trial is reported.
    """
    trials: list[dict[str, Any]] = []
    while len(trials) < SAMPLING_TRIALS and (not trials or trials[-1]["failure"]):
        trials.append(_sampling_trial(settings, options))
    return {"trials": trials, "bound": settings.prerun.sampling_tolerance, "failure": trials[-1]["failure"]}


def _sampling_trial(settings: PrerunSlice, options: dict[str, Any]) -> dict[str, Any]:
    seconds, bound = settings.prerun.burn_in_seconds, settings.prerun.sampling_tolerance
    period = options["nvml_poll_interval_ms"]
    runs = [_metered_burn(seconds, options | {"nvml_poll_interval_ms": p}) for p in (period, period // 2)]
    watts = [run["joules"] / run["seconds"] if run["joules"] is not None else None for run in runs]
    failure = difference = None
    if watts[0] is None or watts[1] is None:
        failure = f"the meter found no energy in a {seconds:g} s load: {runs[0]['reason'] or runs[1]['reason']}"
    elif watts[0] <= 0:
        failure = f"a {seconds:g} s load used {watts[0]} W: the source does not count"
    else:
        difference = abs(watts[1] - watts[0]) / watts[0]
        if difference > bound:
            failure = (
                f"mean power sampled at {period} ms and {period // 2} ms differs by {difference:.1%} "
                f"in {SAMPLING_TRIALS} trials, prerun.sampling_tolerance = {bound:.0%}"
            )
    return {"runs": runs, "mean_watts": watts, "difference": difference, "failure": failure}


def _metered_burn(seconds: float, options: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        base = [sys.executable, "-m", "workflow_scripts.energy.meter", "--stage", "burn_in", "--role", "prerun"]
        paths = ["--record", f"{folder}/record.json", "--log", f"{folder}/log", "--state", f"{folder}/state"]
        child = [sys.executable, "-c", BURN.format(seconds=seconds)]
        command = [*base, *paths, "--options", json.dumps(options), "--", *child]
        subprocess.run(command, check=True, capture_output=True)
        record = read_json(Path(folder) / "record.json")
    total = record["energy"]["total"]
    return {
        "period_ms": options["nvml_poll_interval_ms"],
        "seconds": record["duration_seconds"],
        "joules": total["joules"],
        "class": total["class"],
        "boundary": total["boundary"],
        "reason": total["reason"],
        "samples": record["attempts"][-1]["sampling"],
    }


def check_hardware(settings: PrerunSlice) -> dict[str, Any]:
    """Compare the host with `hardware.*`."""
    wanted = settings.hardware
    try:
        gpus: list[str] = [device["name"] for device in NvmlSource().describe()]
    except OSError:
        gpus = []
    cpu = provenance("")["cpu"] or "unknown"
    free = psutil.virtual_memory().available / 1e9
    failures = []
    if wanted.assert_gpu_count is not None and len(gpus) != wanted.assert_gpu_count:
        failures.append(f"hardware.assert_gpu_count = {wanted.assert_gpu_count}, but the job sees {len(gpus)} GPU(s)")
    for name in gpus:
        if wanted.assert_gpu_name and wanted.assert_gpu_name not in name:
            failures.append(f"hardware.assert_gpu_name = {wanted.assert_gpu_name!r}, but a GPU is {name!r}")
    if wanted.assert_gpu_name and not gpus:
        failures.append(f"hardware.assert_gpu_name = {wanted.assert_gpu_name!r}, but the job sees no GPU")
    if wanted.assert_cpu_brand and wanted.assert_cpu_brand not in cpu:
        failures.append(f"hardware.assert_cpu_brand = {wanted.assert_cpu_brand!r}, but the CPU is {cpu!r}")
    if free < wanted.min_free_memory_gb:
        failures.append(f"hardware.min_free_memory_gb = {wanted.min_free_memory_gb}, but {free:.1f} GB are free")
    return {"gpus": gpus or "no GPU", "cpu": cpu, "free_memory_gb": free, "failure": "; ".join(failures) or None}


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "mean": statistics.mean(values),
        "min": min(values),
        "max": max(values),
        "std": statistics.pstdev(values),
        "n": len(values),
    }


if __name__ == "__main__":
    sys.exit(main())
