"""prerun: does the meter work on this kind of host, and is it the host that was asked for?

    python -m workflow_scripts.stages.prerun --settings JSON --options JSON --out FILE

Writes idle baseline, burn-in through the whole meter, sampling check and hardware check. A failed check exits 1 with the
number and the bound, and stops everything that depends on it. Without a GPU the GPU parts say so; nothing is 0 W by default.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from workflow_scripts.artefact import read_json, write_json
from workflow_scripts.energy.host import cpu_brand
from workflow_scripts.energy.sources.nvml import open_nvml
from workflow_scripts.energy.state import TOKEN_VARIABLE
from workflow_scripts.plan import slices
from workflow_scripts.settings import Settings

SAMPLING_TRIALS = 3
SETTLE_S = 5.0
BURN = """
import time
begin = time.monotonic()
while time.monotonic() < begin + {seconds}: sum(range(10000))
"""


def main() -> int:
    """Run all checks; returns 1 when one failed."""
    parser = argparse.ArgumentParser(prog="workflow_scripts.stages.prerun", allow_abbrev=False)
    for name in ("settings", "options", "out"):
        parser.add_argument(f"--{name}", required=True)
    arguments = parser.parse_args()
    settings = slices.read(arguments.settings)
    options = json.loads(arguments.options)
    hardware = check_hardware(settings)
    if hardware["failure"]:
        return fail(hardware["failure"])
    idle = idle_baseline(settings, options)
    sampling = check_sampling(settings, options)
    if sampling["failure"]:
        return fail(sampling["failure"])
    result = {
        "host": socket.gethostname(),
        "settings": json.loads(arguments.settings),
        "hardware": hardware,
        "idle": idle,
        "sampling": sampling,
        "passed": True,
    }
    write_json(Path(arguments.out), result)
    return 0


def fail(reason: str) -> int:
    """Say which number missed which bound; the exit code stops everything that depends on the prerun."""
    print(f"error: prerun: {reason}", file=sys.stderr)
    return 1


def idle_baseline(settings: Settings, options: dict[str, Any]) -> dict[str, Any]:
    """Mean power [W] of each component at rest, through the whole meter, and the CPU load meanwhile.

    `with_context` is the same with an open CUDA context, which alone adds tens of watts on data-centre cards. Not stable, with
    the reason, when other work loads the CPUs or a GPU's power spreads by more than a tenth of its mean.
    """
    seconds, bound = settings.prerun.idle_seconds, settings.prerun.max_idle_cpu_percent
    rest = _metered([sys.executable, "-c", f"import time; time.sleep({SETTLE_S + seconds})"], options, seconds)
    context = None
    if rest["watts"]["gpu"] is not None:
        hold = f"import torch, time; torch.zeros(1, device='cuda'); time.sleep({seconds})"
        context = _metered([sys.executable, "-c", hold], options, seconds)["watts"]["gpu"]
    load, gpu = rest["cpu_load_percent"], rest["gpu_watts"]
    reason = None
    if load["mean"] > bound:
        reason = f"CPU load {load['mean']:.0f} %, prerun.max_idle_cpu_percent = {bound:.0f}: other work runs on this host"
    elif gpu is not None and gpu["std"] > 0.1 * gpu["mean"]:
        reason = f"GPU power {gpu['mean']:.0f} W spreads by {gpu['std']:.0f} W, bound a tenth of the mean"
    return {
        "host": socket.gethostname(),
        "time": time.time(),
        "gpus": rest["gpus"],
        "seconds": seconds,
        "watts": rest["watts"],
        "with_context_gpu_watts": context,
        "cpu_load_percent": load,
        "gpu_watts": gpu,
        "gpu_reason": rest["gpu_reason"],
        "stable": reason is None,
        "reason": reason,
    }


def check_sampling(settings: Settings, options: dict[str, Any]) -> dict[str, Any]:
    """The same load through the whole meter at the configured period and at half of it: the mean powers must agree.

    Other work on the host changes the power between the two loads by chance, a fault of the sampling does so every time;
    so a disagreement is tried again, twice at most, and every trial is reported.
    """
    trials: list[dict[str, Any]] = []
    seconds = settings.prerun.burn_in_seconds
    while len(trials) < SAMPLING_TRIALS and (not trials or trials[-1]["failure"]):
        trials.append(_sampling_trial(seconds, settings.prerun.sampling_tolerance, options))
    return {"trials": trials, "bound": settings.prerun.sampling_tolerance, "failure": trials[-1]["failure"]}


def _sampling_trial(seconds: float, bound: float, options: dict[str, Any]) -> dict[str, Any]:
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
    result = _metered([sys.executable, "-c", BURN.format(seconds=seconds)], options)
    return {k: v for k, v in result.items() if k not in ("gpu_watts", "gpu_reason", "gpus", "cpu_load_percent")}


def _metered(child: list[str], options: dict[str, Any], window_s: float | None = None) -> dict[str, Any]:
    """Run a command under the whole meter: its energy, and mean power by component over its last `window_s` seconds.

    The window leaves out the seconds in which the meter starts, which are no rest.
    """
    load: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        base = [sys.executable, "-m", "workflow_scripts.energy.meter", "--stage", "load", "--role", "prerun"]
        paths = ["--record", f"{folder}/record.json", "--log", f"{folder}/log", "--state", f"{folder}/state"]
        environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}  # a folder of our own
        process = subprocess.Popen(
            [*base, *paths, "--options", json.dumps(options), "--", *child], stderr=subprocess.PIPE, env=environment
        )
        while process.poll() is None:
            load.append((psutil.cpu_percent(interval=0.25), time.monotonic()))
        ended = time.monotonic()
        said = process.stderr.read().decode() if process.stderr else ""
        if process.returncode != 0:
            sys.exit(f"error: prerun: a load under the meter ended with code {process.returncode}: {said}")
        record = read_json(Path(folder) / "record.json")
        trace = pd.read_csv(record["attempts"][-1]["trace"])
    total, seconds = record["energy"]["total"], record["duration_seconds"]
    window = trace[trace["elapsed_s"] >= seconds - (window_s or seconds)]
    gpu = window["gpu_w"].dropna().tolist()
    return {
        "period_ms": options["nvml_poll_interval_ms"],
        "seconds": seconds,
        "joules": total["joules"],
        "watts": {name: _mean_watts(window, f"{name}_j") for name in ("gpu", "module", "cpu", "dram")},
        "class": total["class"],
        "boundary": total["boundary"],
        "reason": total["reason"],
        "samples": record["attempts"][-1]["sampling"],
        "gpu_watts": _spread(gpu) if gpu else None,
        "gpu_reason": record["energy"]["gpu"]["reason"],
        "gpus": sorted(device["uuid"] for device in record["devices"]),
        "cpu_load_percent": _spread([percent for percent, at in load if at >= ended - (window_s or seconds)]),
    }


def _mean_watts(window: pd.DataFrame, column: str) -> float | None:
    """Mean power [W] over a window of a trace, as the slope of its joules; None where they are not known.

    The slope by least squares holds for a source that is slower than the samples, too, whose joules are a staircase.
    """
    known = window[["elapsed_s", column]].dropna()
    if len(known) < 2:
        return None
    return float(np.polyfit(known["elapsed_s"], known[column], 1)[0])


def check_hardware(settings: Settings) -> dict[str, Any]:
    """Compare the host with `hardware.*`."""
    wanted = settings.hardware
    try:
        source, _ = open_nvml(0.0, 1.0)
        gpus: list[str] = [str(device.get("name")) for device in source.describe(set())]
    except OSError:
        gpus = []
    cpu = cpu_brand() or "unknown"
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
