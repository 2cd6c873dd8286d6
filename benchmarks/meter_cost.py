"""What the meter costs, measured side by side in one run.

    python -m benchmarks.meter_cost [SECONDS]

Prints a table: CPU of the meter as a share of one core at 500 ms (the difference of a long and a short stage), its memory
beyond a process with CodeCarbon alone, the delay it puts before a stage, samples missed while a stage holds the interpreter
lock, and the error of integrating a replayed trace.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from workflow_scripts.energy.sources.base import PowerIntegral
from workflow_scripts.settings.schema import Energy

REPOSITORY = Path(__file__).parents[1]
CODECARBON_ALONE = """
import time
from codecarbon import OfflineEmissionsTracker
tracker = OfflineEmissionsTracker(country_iso_code="CAN", measure_power_secs=1, log_level="critical", save_to_file=False)
tracker.start()
time.sleep(5)
lines = open("/proc/self/status").read().splitlines()
print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024)
"""


def metered(code: str, folder: Path, **energy: object) -> dict:
    """Run Python code under the meter; returns the record."""
    options = Energy(**energy).model_dump_json()
    command = [sys.executable, "-m", "workflow_scripts.energy.meter", "--stage", "bench", "--role", "accounting"]
    command += [f"--record={folder}/record.json", f"--log={folder}/log", f"--state={folder}/state", "--options", options, "--"]
    subprocess.run([*command, sys.executable, "-c", code], cwd=REPOSITORY, check=True, stderr=subprocess.DEVNULL)
    return json.loads((folder / "record.json").read_text())


def start_delay(folder: Path) -> float:
    """Seconds from starting the meter to the stage's first line, less those of the same stage alone (median of 5)."""
    code = "import time; print(time.time())"
    with_meter, alone = [], []
    for number in range(5):
        part = folder / str(number)
        part.mkdir()
        began = time.time()
        metered(code, part)
        with_meter.append(float((part / "log").read_text()) - began)
        began = time.time()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        alone.append(float(done.stdout) - began)
    return statistics.median(with_meter) - statistics.median(alone)


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
        for part in ("idle", "stall", "delay"):
            (folder / part).mkdir()
        record = metered(f"import time; time.sleep({seconds})", folder / "idle", nvml_poll_interval_ms=500)
        overhead = record["overhead"]
        short = metered(f"import time; time.sleep({seconds / 4})", folder / "delay", nvml_poll_interval_ms=500)
        spent = overhead["cpu_seconds"] - short["overhead"]["cpu_seconds"]
        share = spent / (record["duration_seconds"] - short["duration_seconds"])
        alone = float(
            subprocess.run([sys.executable, "-c", CODECARBON_ALONE], capture_output=True, text=True, check=True).stdout
        )
        stall = metered("import ctypes; [ctypes.PyDLL(None).sleep(10) for _ in range(2)]", folder / "stall")
        sampling = stall["attempts"][0]["sampling"]
        delays = folder / "delays"
        delays.mkdir()
        rows = [
            ("meter CPU while it runs, share of one core", f"{share:.2%}", "< 1 %"),
            ("meter CPU of start and end, once a stage", f"{overhead['cpu_seconds'] - share * seconds:.2f} s", "-"),
            ("meter memory beyond CodeCarbon alone", f"{overhead['max_rss_mb'] - alone:.0f} MB", "< 60 MB"),
            ("delay before the stage", f"{start_delay(delays):.3f} s", "< 0.3 s"),
            (
                "samples missed, lock held 10 s at a time",
                f"{sampling['expected'] - sampling['n']} of {sampling['expected']}",
                "0",
            ),
            ("integration error of a replayed trace", f"{replay_error():.1e}", "< 1e-6"),
        ]
    for what, value, bound in rows:
        print(f"{what:45} {value:>12}   wanted {bound}")


if __name__ == "__main__":
    main()
