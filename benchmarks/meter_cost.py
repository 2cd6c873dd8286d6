"""What the meter costs, measured side by side in one run.

    python -m benchmarks.meter_cost [SECONDS]

Prints a table: CPU of the meter as a share of one core at 500 ms (of the process, between two instants of a stage), its memory
beyond its imports, the delay it puts before a stage, what a stage of 0.3 s gets, its modelled joules by those of CodeCarbon's
own tracker, how three jobs share a host's joules, samples missed while a stage holds the interpreter lock, and the error of
integrating a replayed trace.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from workflow_scripts.energy.sources.base import PowerIntegral
from workflow_scripts.energy.uncertainty import KWH
from workflow_scripts.settings.schema import Energy

REPOSITORY = Path(__file__).parents[1]
IMPORTS = """
import workflow_scripts.energy.meter, codecarbon.external.hardware
lines = open("/proc/self/status").read().splitlines()
print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024)
"""
BURN = "import time\ne = time.monotonic() + 12\nwhile time.monotonic() < e: sum(range(1000))"

TRACKED = """
import os, time
from codecarbon import OfflineEmissionsTracker
tracker = OfflineEmissionsTracker(country_iso_code="CAN", measure_power_secs=5, save_to_file=False, log_level="critical")
begun = float(os.environ["STAGE_BEGIN"])
tracker.start()
first, end = time.monotonic() - begun, time.monotonic() + 40
while time.monotonic() < end: sum(range(1000))
last = time.monotonic() - begun
tracker.stop()
found = tracker.final_emissions_data
print(first, last, found.cpu_energy, found.ram_energy)
"""


def metered(code: str, folder: Path, **energy: object) -> dict:
    """Run Python code under the meter; returns the record."""
    subprocess.run(command(folder, code, Energy(**energy)), cwd=REPOSITORY, check=True, stderr=subprocess.DEVNULL)
    return json.loads((folder / "record.json").read_text())


def command(folder: Path, code: str, options: Energy) -> list[str]:
    """The meter's command line around Python code."""
    base = [sys.executable, "-m", "workflow_scripts.energy.meter", "--stage", "bench", "--role", "accounting"]
    paths = [f"--record={folder}/record.json", f"--log={folder}/log", f"--state={folder}/state"]
    return [*base, *paths, "--options", options.model_dump_json(), "--", sys.executable, "-c", code]


def while_running(folder: Path, seconds: float) -> tuple[float, dict]:
    """CPU of the meter as a share of one core while its stage sleeps, from 3 s on, and the record."""
    meter = subprocess.Popen(
        command(folder, f"import time; time.sleep({seconds + 4})", Energy(nvml_poll_interval_ms=500)),
        cwd=REPOSITORY,
        stderr=subprocess.DEVNULL,
    )
    process = psutil.Process(meter.pid)
    time.sleep(3)
    began, before = time.monotonic(), process.cpu_times()
    time.sleep(seconds)
    elapsed, after = time.monotonic() - began, process.cpu_times()
    meter.wait()
    spent = after.user + after.system - before.user - before.system
    return spent / elapsed, json.loads((folder / "record.json").read_text())


def start_delay(folder: Path) -> float:
    """Seconds from starting the meter to the stage's first line, less those of the same stage alone (median of 9)."""
    code = "import time; print(time.time())"
    with_meter, alone = [], []
    for number in range(9):
        part = folder / str(number)
        part.mkdir()
        began = time.time()
        metered(code, part)
        with_meter.append(float((part / "log").read_text()) - began)
        began = time.time()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        alone.append(float(done.stdout) - began)
    return statistics.median(with_meter) - statistics.median(alone)


def by_tracker(folder: Path) -> tuple[float, float]:
    """Our joules of CPU and RAM over the 40 s in which CodeCarbon's own tracker runs in the stage, by the tracker's.

    The tracker leaves out the time that each of its measurements takes.
    """
    record = metered(TRACKED, folder)
    first, last, *energies = map(float, (folder / "log").read_text().splitlines()[-1].split())
    trace = pd.read_csv(record["attempts"][-1]["trace"])
    ours = [np.diff(np.interp([first, last], trace["elapsed_s"], trace[f"{name}_j"]))[0] for name in ("cpu", "dram")]
    return ours[0] / (energies[0] * KWH), ours[1] / (energies[1] * KWH)


def shared_out(folder: Path) -> float:
    """Three jobs that burn CPU at the same time on one host: the sum of their joules above idle over the host's."""
    options = Energy(cpu_scope="job", flush_seconds=0.5)
    jobs = []
    for number in range(3):
        part = folder / str(number)
        part.mkdir(parents=True)
        jobs.append(subprocess.Popen(command(part, BURN, options), cwd=REPOSITORY, stderr=subprocess.DEVNULL))
    for job in jobs:
        job.wait()
    records = [json.loads((folder / str(number) / "record.json").read_text()) for number in range(3)]
    dynamic = [record["energy"]["cpu"] for record in records]
    idle = [0.1 * r["power_models"][0]["cpu_tdp_watts"] * r["duration_seconds"] for r in records]
    # each of them may use all CPUs here, so each is billed the whole idle host: what is split is what is above it
    host = statistics.mean(entry["host_joules"] - rest for entry, rest in zip(dynamic, idle, strict=True))
    return sum(entry["joules"] - rest for entry, rest in zip(dynamic, idle, strict=True)) / host


def replay_error() -> float:
    """Relative error of 200,000 samples of 300 + 100 sin(t) W against the closed form."""
    integral, period, count = PowerIntegral(1.0), 0.001, 200_000
    for i in range(count + 1):
        integral.advance(i * period, 300 + 100 * math.sin(i * period))
    exact = 300 * count * period + 100 * (1 - math.cos(count * period))
    return abs(integral.joules - exact) / exact


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.meter_cost", description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=60.0, help="length of the stage that is metered")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["METER_HOSTS"] = str(folder / "hosts")  # the host's facts are found by the first stage
        for part in ("idle", "stall", "moment", "first", "tracked", "delays"):
            (folder / part).mkdir()
        metered("", folder / "first")
        share, record = while_running(folder / "idle", seconds)
        overhead = record["overhead"]
        cpu, dram = by_tracker(folder / "tracked")
        imports = subprocess.run([sys.executable, "-c", IMPORTS], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        moment = metered("import time; time.sleep(0.3)", folder / "moment")
        stall = metered("import ctypes; [ctypes.PyDLL(None).sleep(10) for _ in range(2)]", folder / "stall")
        sampling = stall["attempts"][0]["sampling"]
        missed = f"{sampling['expected'] - sampling['n']} of {sampling['expected']}"
        delay = start_delay(folder / "delays")
        split = " ".join(f"{shared_out(folder / f'jobs{n}'):.3f}" for n in range(3))
        rows = [
            ("meter CPU while it runs, share of one core", f"{share:.2%}", "< 1 %"),
            ("meter CPU of start and end, once a stage", f"{overhead['cpu_seconds'] - share * seconds:.2f} s", "-"),
            ("meter memory beyond its imports", f"{overhead['max_rss_mb'] - float(imports.stdout):.0f} MB", "< 60 MB"),
            ("delay before the stage", f"{delay:.3f} s", "< 0.15 s"),
            ("a stage of 0.3 s", f"{moment['total_energy_joules']:.2f} J", "a figure"),
            ("modelled CPU and RAM by CodeCarbon's tracker", f"{cpu:.3f} {dram:.3f}", "0.98 to 1.02"),
            ("three jobs at once, joules above idle over the host's", split, "0.99 to 1.01"),
            ("samples missed, lock held 10 s at a time", missed, "0"),
            ("integration error of a replayed trace", f"{replay_error():.1e}", "< 1e-6"),
        ]
    for what, value, bound in rows:
        print(f"{what:55} {value:>12}   wanted {bound}")


if __name__ == "__main__":
    main()
