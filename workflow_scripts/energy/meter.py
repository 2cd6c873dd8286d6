"""The energy meter: runs a stage as its child process and writes what it cost.

    python -m workflow_scripts.energy.meter --stage NAME --role ROLE --record FILE --log FILE --state DIR
        --options JSON [--experiment NAME --pipeline NAME] [--codecarbon DIR] [--input FILE …] -- COMMAND …

The stage is a process of its own, so that nothing it does can stop the sampling. Its output goes to the log file. SIGTERM
and SIGINT are passed on to it; the meter ends with its exit code (128 + n for signal n). What is known is on disk every
`flush_seconds`, in the attempt ledger of the state folder; the record is written when the stage has succeeded and adds up
all attempts. A meter that is killed takes its stage with it (the stage gets SIGTERM).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gzip
import json
import os
import platform
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

from workflow_scripts.artefact import write_json
from workflow_scripts.energy.ledger import LedgerError, LedgerWriter, read_attempts
from workflow_scripts.energy.record import StageRecord, build_record, total_joules
from workflow_scripts.energy.sources import CodeCarbonSource, Figure, NvmlSource, RaplSource, unavailable
from workflow_scripts.energy.state import Lock, LockedError, fingerprint

_PR_SET_PDEATHSIG = 1
_SLURM_KEYS = ("SLURM_JOB_ID", "SLURM_JOB_PARTITION", "SLURM_RESTART_COUNT", "SLURM_JOB_GPUS", "SLURM_CLUSTER_NAME")
_PACKAGES = ("torch", "transformers", "trl", "datasets", "codecarbon", "snakemake", "nvidia-ml-py")
LOG_TAIL_LINES = 25


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the stage's exit code."""
    started = time.monotonic()
    options, command = parse(sys.argv[1:] if arguments is None else arguments)
    mark = fingerprint(options.stage, command, [Path(p) for p in options.input])
    folder = Path(options.state) / options.stage / mark
    folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(folder)
    try:
        lock.acquire()
        read_attempts(folder / "attempts", options.stage)
    except (LockedError, LedgerError) as error:
        print(f"{options.stage}: {error}", file=sys.stderr)
        return 1
    try:
        return _Run(options, command, folder, mark, lock, started).run()
    finally:
        lock.release()


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the meter's own options from the stage's command after `--`."""
    parser = argparse.ArgumentParser(prog="workflow_scripts.energy.meter", allow_abbrev=False)
    for name in ("stage", "role", "record", "log", "state", "options"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("experiment", "pipeline", "codecarbon"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--input", nargs="*", default=[])
    if "--" not in arguments:
        parser.error("the stage's command is missing: … -- COMMAND")
    split = arguments.index("--")
    command = arguments[split + 1 :]
    if not command:
        parser.error("the stage's command is empty")
    return parser.parse_args(arguments[:split]), command


class _Run:
    """One attempt: start the stage, sample until it ends, write ledger and record."""

    def __init__(
        self, options: argparse.Namespace, command: list[str], folder: Path, mark: str, lock: Lock, started: float
    ) -> None:
        self.options, self.command, self.folder, self.lock = options, command, folder, lock
        self.mark = mark
        self.energy: dict[str, Any] = json.loads(options.options)
        self.period = self.energy["nvml_poll_interval_ms"] / 1000
        self.startup = started
        self.attempt = _attempt_id()
        self.progress_file = folder / f"progress-{self.attempt}.json"
        self.trace_file = folder / "traces" / f"{self.attempt}.csv"
        self.received: int | None = None
        self.ticks = 0
        self.max_gap = 0.0
        self.gpu_peak: float | None = None
        self.warnings: list[str] = []
        self.last_work: dict[str, Any] | None = None
        self.saved_joules: dict[str, float | None] | None = None

    def run(self) -> int:
        """Returns the stage's exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._forward)
        self.nvml, self.nvml_reason = _open(NvmlSource)
        self.rapl, self.rapl_reason = _open(lambda: RaplSource(Path(self.energy["rapl_root"])))
        self.trace_file.parent.mkdir(parents=True, exist_ok=True)
        self.ledger = LedgerWriter(self.folder / "attempts" / f"{self.attempt}.jsonl", self._start_line())
        log = Path(self.options.log)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output, self.trace_file.open("w", encoding="utf-8") as self.trace:
            self.trace.write("elapsed_s,gpu_w,cpu_j,dram_j,gpu_j,tokens\n")
            self.begin = self.last_tick = time.monotonic()
            self.startup_s = self.begin - self.startup
            self.child = self._spawn(output)
            if self.received is not None:
                self._forward(self.received, None)
            self.codecarbon = self._start_codecarbon()
            self._watch()
            ended = time.monotonic()
            outcome = self._outcome()
            self._sweep()
            if self.codecarbon is not None:
                self.codecarbon.close()
            end = self._tick_line(ended)
        self.ledger.append({"event": "end", **end, **outcome})
        self.ledger.close()
        self._compress_trace()
        record = self._record()
        self._say(record, outcome, log)
        for source in (self.nvml, self.rapl):
            if source is not None:
                source.close()
        self.progress_file.unlink(missing_ok=True)
        return int(outcome["exit_code"]) if outcome["signal"] is None else 128 + int(outcome["signal"])

    # ---- the child

    def _spawn(self, output: Any) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "STAGE_STATE_DIR": str(self.folder.absolute()),
            "STAGE_PROGRESS": str(self.progress_file.absolute()),
            "PYTHONUNBUFFERED": "1",
        }
        try:
            return subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        except OSError as error:
            self.lock.release()
            sys.exit(f"{self.options.stage}: cannot start {self.command[0]}: {error.strerror}")

    def _forward(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        child = getattr(self, "child", None)
        if child is not None and child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signum)

    def _outcome(self) -> dict[str, Any]:
        code = self.child.returncode
        if code == 0:
            return {"outcome": "completed", "exit_code": 0, "signal": None}
        if code < 0 or self.received is not None:
            number = -code if code < 0 else self.received
            return {"outcome": "signal", "exit_code": None if code < 0 else code, "signal": number}
        return {"outcome": "failed", "exit_code": code, "signal": None}

    def _sweep(self) -> None:
        """End what the stage left running in its process group."""
        try:
            os.killpg(self.child.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.warnings.append("the stage left processes behind; they were ended")

    # ---- sampling

    def _start_codecarbon(self) -> CodeCarbonSource | None:
        if not self.energy["track_cpu"] or self.energy["total_energy_policy"] == "gpu_only":
            return None
        folder = Path(self.options.codecarbon) if self.options.codecarbon else self.folder / "codecarbon"
        number = len(list((self.folder / "attempts").glob("*.jsonl")))
        name = f"{self.options.stage}.csv" if number == 1 else f"{self.options.stage}.attempt{number}.csv"
        with contextlib.suppress(FileNotFoundError):
            (folder / name).unlink()
        return CodeCarbonSource(self.energy, folder / name)

    def _watch(self) -> None:
        pidfd = os.pidfd_open(self.child.pid)
        bar = _Bar(self.options.stage) if sys.stderr.isatty() else None
        flushed = self.begin
        try:
            while self.child.poll() is None:
                wait = max(0.0, self.last_tick + self.period - time.monotonic())
                select.select([pidfd], [], [], wait)
                now = time.monotonic()
                if self.child.poll() is None and now - self.last_tick >= self.period:
                    self._sample(now)
                    if bar is not None:
                        bar.draw(self.last_work, now - self.begin)
                if now - flushed >= self.energy["flush_seconds"]:
                    flushed = now
                    self.ledger.append({"event": "tick", **self._tick_line(now)})
                    self.lock.beat()
        finally:
            os.close(pidfd)
            if bar is not None:
                bar.clear()

    def _sample(self, now: float) -> None:
        self.max_gap = max(self.max_gap, now - self.last_tick)
        self.last_tick = now
        self.ticks += 1
        figures = self._figures()
        gpu = figures["gpu"].watts
        if gpu is not None:
            self.gpu_peak = max(self.gpu_peak or 0.0, gpu)
        before = (self.last_work or {}).get("durable")
        work = self._work()
        if work and work["durable"] != before and work["durable"] != work["resumed"]:
            self.saved_joules = {name: figure.joules for name, figure in figures.items()}
        tokens = (work or {}).get("work", {}).get((work or {}).get("unit"))
        row = [gpu, figures["cpu"].joules, figures["dram"].joules, figures["gpu"].joules, tokens]
        with contextlib.suppress(OSError):
            self.trace.write(f"{now - self.begin:.3f}," + ",".join("" if v is None else f"{v:.6g}" for v in row) + "\n")
            self.trace.flush()

    def _figures(self) -> dict[str, Figure]:
        """The best source of each component, the second best as its cross-check."""
        gpu = self.nvml.read()["gpu"] if self.nvml else unavailable(self.nvml_reason)
        figures = {"gpu": gpu}
        modelled = self.codecarbon.read() if self.codecarbon else {}
        counted = self.rapl.read() if self.rapl else {}
        for name in ("cpu", "dram"):
            if not self.energy["track_cpu"]:
                figures[name] = unavailable("energy.track_cpu = false")
                continue
            best = counted.get(name)
            if self.energy["total_energy_policy"] == "codecarbon" or best is None or best.joules is None:
                best = modelled.get(name) or unavailable(f"{self.rapl_reason}; CodeCarbon was not asked")
            elif name in modelled:
                best.crosscheck = modelled[name].joules
            figures[name] = best
        return figures

    def _work(self) -> dict[str, Any] | None:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            self.last_work = json.loads(self.progress_file.read_text(encoding="utf-8"))
        return self.last_work

    def _tick_line(self, now: float) -> dict[str, Any]:
        elapsed = now - self.begin
        joules = {
            name: {
                "joules": f.joules,
                "class": f.energy_class,
                "method": f.method or None,
                "reason": f.reason,
                "devices": f.devices,
                "crosscheck": f.crosscheck,
            }
            for name, f in self._figures().items()
        }
        expected = int(elapsed / self.period)
        head = self.codecarbon.head_joules if self.codecarbon else {}
        modelled = [n for n, e in joules.items() if e["class"] == "modelled"]
        return {
            "elapsed_s": elapsed,
            "joules": joules,
            "work": self._work(),
            "saved_joules": self.saved_joules,
            "gpu_peak_watts": self.gpu_peak,
            "codecarbon": self.codecarbon.emissions() if self.codecarbon else None,
            "sampling": {
                "period_s": self.period,
                "n": self.ticks,
                "expected": expected,
                "missed_pct": 100 * max(0, expected - self.ticks) / expected if expected else None,
                "max_gap_s": self.max_gap,
                "j_in_gaps": sum(head.get(name, 0.0) for name in modelled),
            },
            "warnings": list(self.warnings),
        }

    # ---- what is written

    def _start_line(self) -> dict[str, Any]:
        if self.nvml is not None and os.environ.get("CUDA_VISIBLE_DEVICES") is None:
            self.warnings.append("CUDA_VISIBLE_DEVICES is not set: all GPUs of the host are counted")
        return {
            "stage": self.options.stage,
            "attempt": self.attempt,
            "fingerprint": self.mark,
            "time": time.time(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "slurm": {key: os.environ[key] for key in _SLURM_KEYS if key in os.environ},
            "devices": self.nvml.describe() if self.nvml else [],
            "trace": str(self.trace_file.with_suffix(".csv.gz")),
            "command": self.command,
        }

    def _compress_trace(self) -> None:
        try:
            with self.trace_file.open("rb") as source, gzip.open(self.trace_file.with_suffix(".csv.gz"), "wb") as target:
                shutil.copyfileobj(source, target)
            self.trace_file.unlink()
        except OSError as error:
            self.warnings.append(f"power trace not compressed: {error.strerror}")

    def _record(self) -> StageRecord:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        overhead = {
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "max_rss_mb": usage.ru_maxrss / 1024,
            "startup_seconds": self.startup_s,
        }
        labels = {
            "stage": self.options.stage,
            "role": self.options.role,
            "experiment": self.options.experiment,
            "pipeline": self.options.pipeline,
            "energy": self.energy,
            "provenance": provenance(self.mark),
        }
        record = build_record(read_attempts(self.folder / "attempts", self.options.stage), labels, overhead)
        if self.ledger.lost_lines:
            record.warnings.append(f"{self.ledger.lost_lines} ledger line(s) could not be written: the disk was full")
        content = record.model_dump(mode="json", by_alias=True)
        write_json(self.folder / "record.json", content)
        if record.status == "complete":
            write_json(Path(self.options.record), content)
        return record

    def _say(self, record: StageRecord, outcome: dict[str, Any], log: Path) -> None:
        joules = total_joules(record.attempts[-1].joules, self.energy["total_energy_policy"])
        energy = (
            f"energy {record.energy.cpu.reason}" if joules is None else f"{joules:.0f} J ({record.energy.total.energy_class})"
        )
        seconds = record.attempts[-1].duration_seconds
        print(f"{self.options.stage}: {outcome['outcome']} after {seconds:.1f} s, {energy}", file=sys.stderr)
        if outcome["outcome"] != "completed":
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
            print("\n".join([f"--- end of {log}", *lines, "---"]), file=sys.stderr)


class _Bar:
    """A progress line on the terminal."""

    def __init__(self, stage: str) -> None:
        self._stage = stage

    def draw(self, work: dict[str, Any] | None, elapsed: float) -> None:
        width = shutil.get_terminal_size().columns - 1
        text = f"{self._stage}  {elapsed:.0f} s"
        if work:
            done, total = work["work"].get(work["unit"], 0), work["total"]
            new = done - ((work["resumed"] or {}).get(work["unit"], 0))
            filled = int(20 * min(1.0, done / total)) if total else 0
            bar = f"[{'#' * filled}{'.' * (20 - filled)}] " if total else ""
            text += f"  {bar}{done}{f'/{total}' if total else ''} {work['unit']} tokens  {new / max(elapsed, 1e-9):.0f}/s"
        print("\r\x1b[K" + text[:width], end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def provenance(mark: str) -> dict[str, Any]:
    """Versions, host and code that a figure comes from."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain", "--", "."], capture_output=True, text=True, check=False)
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "fingerprint": mark,
        "git_commit": commit.stdout.strip() or None,
        "git_dirty": bool(changed.stdout.strip()) if commit.returncode == 0 else None,
        "host": socket.gethostname(),
        "cpu": _cpu_brand(),
        "cpu_count": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": versions,
    }


def _cpu_brand() -> str | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None


def _attempt_id() -> str:
    job = os.environ.get("SLURM_JOB_ID")
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    if job:
        return f"slurm{job}-{os.environ.get('SLURM_RESTART_COUNT', '0')}-{stamp}-{os.getpid()}"
    return f"{stamp}-{socket.gethostname()}-{os.getpid()}"


def _open(make: Any) -> tuple[Any, str]:
    try:
        return make(), ""
    except OSError as error:
        return None, str(error)


def _die_with_parent() -> None:
    """Ask the kernel to send SIGTERM to the stage when the meter dies (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)  # a stage shorter than CodeCarbon's start must not wait for its threads
