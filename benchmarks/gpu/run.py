"""The run on a GPU: each phase under the meter, then one table and one JSON file.

    python -m benchmarks.gpu.run [--scale real|toy] [--out DIR] [--phases NAME ...] [--limit SECONDS]

Without a GPU the scale is toy. Joules of a window are those of the meter's trace between its start and its end: of the GPU's
own counter where there is one, else of all that the record's total holds. MFU: useful FLOPs (padding and recomputation left
out) of the datasheet's dense rate where the card is known; beside it the share of this machine's own measured matrix product.
Peaks of memory are allocations on the GPU (of trainings and losses beyond what was there before), else resident memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.phases import PHASES
from benchmarks.gpu.shapes import SCALES
from benchmarks.measure import REPOSITORY
from workflow_scripts.accounting.traces import TraceError, energy_curve, joules_between
from workflow_scripts.energy.model import StageRecord
from workflow_scripts.energy.uncertainty import worst
from workflow_scripts.settings.schema import Energy

# dense bfloat16 FLOP/s by the makers' datasheets, by a word of the device's name
DATASHEET = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "A40": 150e12}
COLUMNS = ("name", "tokens/s", "ours is", "J/token", "W", "peak GB", "MFU", "of matmul")


def metered(phase: str, scale: str, work: Path, limit_s: float) -> dict[str, Any]:
    """Run a phase under the meter; the record, or why there is none."""
    energy = Energy(nvml_poll_interval_ms=100, flush_seconds=1.0).model_dump_json()
    folder = work / phase
    command = [sys.executable, "-m", "workflow_scripts.energy.meter", "--stage", phase, "--role", "accounting"]
    command += [f"--record={folder}/record.json", f"--log={folder}/log", f"--state={work}/state", "--options", energy, "--"]
    command += [sys.executable, "-m", "benchmarks.gpu.phases", phase, "--scale", scale, "--work", str(work)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment)
    try:
        code = process.wait(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
        return {"reason": f"stopped after {limit_s:.0f} s, the time that was left"}
    if code:
        return {"reason": f"exit code {code}: see {folder}/log"}
    return {"record": StageRecord.read(folder / "record.json").content()}


def with_energy(window: dict[str, Any], record: StageRecord | None, work: Path) -> dict[str, Any]:
    """The window with its joules, their boundary and class; null with a reason where they cannot be told."""
    nothing = {"joules": None, "boundary": None, "energy_class": None}
    if record is None:
        return window | nothing | {"energy_reason": "the phase has no record"}
    inside = record.model_copy(deep=True)
    if record.energy.gpu.joules is not None:
        inside.energy.total.boundary = ["gpu"]
    boundary, attempt = inside.energy.total.boundary, record.attempts[-1]
    begin = window["start_time"] - attempt.start_time
    try:
        joules = joules_between(energy_curve(inside, attempt, work), begin, begin + window["seconds"])
    except TraceError as error:
        return window | nothing | {"energy_reason": str(error)}
    energy_class = worst(getattr(record.energy, name).energy_class for name in boundary)
    reason = None if joules is not None else "the trace does not cover the window"
    return window | {"joules": joules, "boundary": boundary, "energy_class": energy_class, "energy_reason": reason}


def with_figures(windows: list[dict[str, Any]], device: dict[str, Any]) -> list[dict[str, Any]]:
    """Per-token figures, and `ratio`: tokens/s of the window that a peer belongs to, by the peer's."""
    speed = {w["name"]: w["tokens"] / w["seconds"] for w in windows if w["reason"] is None}
    found = []
    for window in windows:
        ok = window["reason"] is None
        ours = speed.get(window["peer_of"])
        joules = window["joules"] if ok else None
        rate = window["flops"] / window["seconds"] if ok else None
        found.append(
            window
            | {
                "tokens_per_second": speed.get(window["name"]),
                "ratio": ours / speed[window["name"]] if ours and ok else None,
                "joules_per_token": joules / window["tokens"] if joules is not None else None,
                "watts": joules / window["seconds"] if joules is not None else None,
                "mfu": rate / device["datasheet_flops"] if rate and device["datasheet_flops"] else None,
                "of_matmul": rate / device["matmul_flops"] if rate else None,
            }
        )
    return found


def describe(dtype: torch.dtype) -> dict[str, Any]:
    """The device, its datasheet's rate and the best of ten square matrix products [FLOP/s]."""
    gpu = torch.cuda.is_available()
    size = 8192 if gpu else 1024
    a, b = (torch.randn(size, size, device="cuda" if gpu else "cpu", dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        a @ b
        if gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    name = torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine()
    return {
        "name": name,
        "gpu": gpu,
        "matmul_flops": 2 * size**3 / best,
        "datasheet_flops": next((rate for word, rate in DATASHEET.items() if word in name), None) if gpu else None,
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory if gpu else None,
    }


def described(scale: str) -> dict[str, Any]:
    """`describe` in a process of its own, which leaves no context on the GPU."""
    code = (
        f"import json, torch; from benchmarks.gpu.run import describe; print(json.dumps(describe(torch.{SCALES[scale].dtype})))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def versions() -> dict[str, str]:
    """Versions of what matters."""
    import importlib.metadata as metadata

    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "trl", "datasets", "accelerate", "codecarbon", "nvidia-ml-py"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """The table, Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        if row["reason"]:
            lines.append(f"| {row['name']} | {row['reason']} |" + " |" * (len(COLUMNS) - 2))
            continue
        peer = f"{row['ratio']:.2f} x this" if row["ratio"] is not None else ""
        per_token = row["joules_per_token"]
        cells = [
            row["name"],
            f"{row['tokens_per_second']:,.0f}",
            peer,
            f"{per_token:.3g}" if per_token is not None else row["energy_reason"],
            f"{row['watts']:.0f}" if row["watts"] is not None else "",
            f"{row['peak_bytes'] / 1e9:.2f}",
            f"{row['mfu']:.1%}" if row["mfu"] is not None else "",
            f"{row['of_matmul']:.1%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.run", allow_abbrev=False)
    parser.add_argument("--scale", choices=list(SCALES), default="real" if torch.cuda.is_available() else "toy")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "tests" / "gpu" / "out")
    parser.add_argument("--phases", nargs="+", choices=list(PHASES), default=list(PHASES))
    parser.add_argument("--limit", type=float, default=510.0, help="seconds for everything")
    options = parser.parse_args()
    began = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    device = described(options.scale)
    content: dict[str, Any] = {"scale": options.scale, "device": device, "versions": versions(), "phases": {}, "rows": []}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for phase in options.phases:
            left = options.limit - (time.monotonic() - began)
            result = metered(phase, options.scale, work, max(1.0, left))
            lines = (work / "windows.jsonl").read_text().splitlines() if (work / "windows.jsonl").is_file() else []
            mine = [window for window in map(json.loads, lines) if window["phase"] == phase]
            record = StageRecord.model_validate(result["record"]) if "record" in result else None
            rows += [with_energy(window, record, work) for window in mine]
            content["phases"][phase] = result
            content["rows"] = with_figures(rows, device)
            content["seconds"] = time.monotonic() - began
            (options.out / "gpu.json").write_text(json.dumps(content, indent=1) + "\n")
            log = work / phase / "log"
            if log.is_file():
                (options.out / f"{phase}.log").write_bytes(log.read_bytes())
    print(f"\n{device['name']}, scale {options.scale}, {content['seconds']:.0f} s, {content['versions']}")
    energies = {f"{'+'.join(row['boundary'])} ({row['energy_class']})" for row in rows if row["boundary"]}
    said = ", ".join(sorted(energies)) or "none"
    print(f"matrix product {device['matmul_flops'] / 1e12:.3g} TFLOP/s; energy: {said}\n")
    text = table(content["rows"])
    (options.out / "table.md").write_text(text + "\n")
    print(text)
    failed = {phase: result["reason"] for phase, result in content["phases"].items() if "reason" in result}
    for phase, reason in failed.items():
        print(f"error: {phase}: {reason}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
