"""All sources of one attempt, read together: the best figure of each component, the share of the job, the power trace."""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

from workflow_scripts.energy.attribution import CpuSeconds, CpuShare, JobShare, allocated_cpus, scope
from workflow_scripts.energy.carbon import intensity
from workflow_scripts.energy.host import PowerModel
from workflow_scripts.energy.sources.base import Figure, ReadingError, unavailable
from workflow_scripts.energy.sources.codecarbon import ModelledPower, as_codecarbon, power_model, write_csv
from workflow_scripts.energy.sources.nvml import IN_MODULE, GpuSource, open_nvml
from workflow_scripts.energy.sources.rapl import RaplSource, find_zones
from workflow_scripts.energy.sources.slurm import consumed_energy
from workflow_scripts.energy.uncertainty import KWH

GAP_PERIODS = 2.0


class Sampler:
    """Opens what `energy` asks for; a source that cannot be opened leaves its reason with its components."""

    def __init__(self, energy: dict[str, Any], hosts: Path, idle_watts: dict[str, float | None] | None = None) -> None:
        """`hosts` is the folder that keeps power models of hosts; `idle_watts` [W] are those of this host at rest, if known."""
        self._energy, self._idle_watts = energy, idle_watts or {}
        self.period = energy["nvml_poll_interval_ms"] / 1000
        self.warnings: list[str] = []
        self._gpu: GpuSource | None = None
        self._rapl: RaplSource | None = None
        self._refused: dict[str, str] = {}  # by component, why RAPL does not count it
        self._gpu_reason = self._model_reason = ""
        self.model: PowerModel | None = None
        if energy["track_cpu"] and energy["total_energy_policy"] != "gpu_only":
            try:
                self.model = power_model(energy, hosts / f"{socket.gethostname()}.json")
            except Exception as error:  # the stage must run without a model; the record carries the reason
                self._model_reason = f"CodeCarbon: {type(error).__name__}: {error}"
        now = time.monotonic()  # counters count from here on: what takes long comes before
        try:
            self._gpu, self.warnings = open_nvml(now, GAP_PERIODS * self.period)
        except ReadingError as error:
            self._gpu_reason = str(error)
        if energy["track_cpu"]:
            try:
                self._rapl = RaplSource(find_zones(Path(energy["rapl_root"])), now)
                self._refused = self._rapl.refused
            except ReadingError as error:
                self._refused = dict.fromkeys(("cpu", "dram"), str(error))
            if energy["total_energy_policy"] == "measured":  # where there is no RAPL, the method says it
                refused = {reason for reason in self._refused.values() if not reason.startswith("no RAPL")}
                self.warnings += [f"{reason}: {_named(self._refused, reason)} not counted" for reason in sorted(refused)]
        self._modelled: ModelledPower | None = None
        self.host_cpus = os.cpu_count() or 1
        allocated = allocated_cpus(os.environ)
        self.scope = scope(energy["cpu_scope"], allocated, self.host_cpus)
        self._job_cpus = min(allocated, self.host_cpus) if self.scope == "job" else None
        self._job = JobShare(self._job_cpus / self.host_cpus) if self._job_cpus is not None else None
        self._cpu = CpuShare()
        self._seconds, self._own = CpuSeconds(0.0, 0.0, 0.0), time.process_time()
        self._final: dict[str, Figure] | None = None
        self.gpu_peak: float | None = None
        self.samples, self.max_gap, self._last, self._begin = 0, 0.0, now, now

    def start(self, begin: float) -> None:
        """The stage has begun, at `begin` of the monotonic clock."""
        self._last = self._begin = begin
        self._cpu, self._own = CpuShare(), time.process_time()
        if self.model is not None:
            try:
                self._modelled = ModelledPower(self.model, self._begin)
            except Exception as error:  # as above
                self._model_reason = f"CodeCarbon: {type(error).__name__}: {error}"

    def sample(self, now: float) -> dict[str, Figure]:
        """Take one sample of everything."""
        self.max_gap = max(self.max_gap, now - self._last)
        self._last = now
        self.samples += 1
        figures = self.figures(now)
        watts = figures.get("module", figures["gpu"]).watts
        if watts is not None:
            self.gpu_peak = max(self.gpu_peak or 0.0, watts)
        return figures

    def figures(self, now: float, final: bool = False) -> dict[str, Figure]:
        """The best source of each component, the second best as its cross-check; after `stop`, those of the stage's end."""
        if self._final is not None:
            return self._final
        figures = self._gpu.read(now) if self._gpu else {"gpu": unavailable(self._gpu_reason)}
        if "module" in figures:
            figures["gpu"] = unavailable(IN_MODULE)
            if self._energy["total_energy_policy"] != "codecarbon":
                return figures | {name: unavailable(IN_MODULE) for name in ("cpu", "dram")}
        modelled = self._modelled.read(now, final) if self._modelled else {}
        counted = self._rapl.read(now) if self._rapl else {}
        for name in ("cpu", "dram"):
            figures[name] = self._host_figure(name, counted, modelled)
            watts = self._idle_watts.get(name)
            if figures[name].energy_class != "modelled" and watts is not None:
                figures[name].idle_joules = watts * (now - self._begin)
        return figures

    def _host_figure(self, name: str, counted: dict[str, Figure], modelled: dict[str, Figure]) -> Figure:
        if not self._energy["track_cpu"]:
            return unavailable("energy.track_cpu = false")
        best, other = counted.get(name), modelled.get(name)
        only_modelled = self._energy["total_energy_policy"] == "codecarbon"
        if not only_modelled and best is not None:
            if best.joules is not None:
                best.crosscheck = other.joules if other else None
            return best  # what RAPL began to count has no figure when RAPL fails: a model of it is another energy
        if other is not None:
            return other
        why_not = self._refused.get(name, f"RAPL has no {name} zone")
        return unavailable(f"{why_not}; {self._model_reason or 'CodeCarbon was not asked'}")

    def attributed(self, figures: dict[str, Figure]) -> dict[str, float | None]:
        """Joules of each component that are the job's: its share of the host's, where the scope is the job."""
        return {
            name: self._job.joules(name, figure) if self._job and name in ("cpu", "dram") else figure.joules
            for name, figure in figures.items()
        }

    def read_share(self, root: int, now: float) -> None:
        """Look at the CPU time of the job and of its host; `root` is the stage. This process works for the job, too."""
        before, self._seconds = self._seconds, self._cpu.read(root)
        own, self._own = time.process_time() - self._own, time.process_time()
        if self._job is not None:
            host = self._seconds.host - before.host
            share = min(1.0, max(0.0, self._seconds.job - before.job + own) / host) if host > 0 else None
            self._job.look(share, {name: figure for name, figure in self.figures(now).items() if name in ("cpu", "dram")})

    def line(self, now: float, begin: float, final: bool = False) -> dict[str, Any]:
        """Everything the ledger keeps of this instant."""
        figures = self.figures(now)
        if final and self._energy["slurm_energy"]:
            figures["node"] = consumed_energy()
        joules = {name: figure.as_json() for name, figure in figures.items()}
        if self._job is not None:
            attributed = self.attributed(figures)
            for name in ("cpu", "dram"):
                entry = joules[name]
                if entry["joules"] is not None:
                    entry["host_joules"], entry["joules"] = entry["joules"], attributed[name]
                    entry["crosscheck"] = self._job.crosscheck(name, figures[name])
                    if entry["joules"] is None:
                        entry |= {"class": "unavailable", "reason": "the job's share of CPU time is not known"}
        elapsed = now - begin
        expected = int(elapsed / self.period)
        return {
            "elapsed_s": elapsed,
            "joules": joules,
            "gpu_peak_watts": self.gpu_peak,
            "codecarbon": self._emissions(figures),
            "cpu": self._contention(elapsed),
            "sampling": {
                "period_s": self.period,
                "n": self.samples,
                "expected": expected,
                "missed_pct": 100 * max(0, expected - self.samples) / expected if expected else None,
                "max_gap_s": self.max_gap,
                "j_in_gaps": sum(entry["gap_joules"] for entry in joules.values() if entry["joules"] is not None),
            },
            "warnings": [
                *self.warnings,
                *(
                    self._modelled.warnings()
                    if self._modelled and "modelled" in (f.energy_class for f in figures.values())
                    else []
                ),
                *(text for figure in figures.values() for text in figure.warnings),
            ],
        }

    def devices(self) -> list[dict[str, Any]]:
        """GPUs with temperature and foreign processes."""
        return self._gpu.describe(self._cpu.pids()) if self._gpu else []

    def _contention(self, elapsed: float) -> dict[str, Any]:
        """CPU seconds of the job, of other work on the host (not the meter's, not its workflow's driver's), and stolen ones."""
        own = time.process_time() + self._seconds.driver
        foreign = max(0.0, self._seconds.host - self._seconds.job - own)
        return {
            "job_s": self._seconds.job,
            "foreign_s": foreign,
            "steal_s": self._seconds.steal,
            "foreign_pct": 100 * foreign / (self.host_cpus * elapsed) if elapsed > 0 else None,
            "host_cpus": self.host_cpus,
            "job_cpus": self._job_cpus,
        }

    def _emissions(self, figures: dict[str, Figure]) -> dict[str, float] | None:
        """Energy of the host by its best sources [kWh], as CodeCarbon states it; None where CodeCarbon was not asked."""
        if self.model is None:
            return None
        return {"energy_kwh": sum(as_codecarbon(figures)) / KWH}

    def stop(self, ended: float) -> None:
        """The stage has ended: read everything at once."""
        self._final = self.figures(ended, final=True)

    def write_csv(self, path: Path, seconds: float, stage: str) -> None:
        """CodeCarbon's own row of the attempt, for the whole host; where it cannot be written that is a warning."""
        if self.model is not None and self._final is not None:
            try:
                write_csv(path, seconds, self._final, self.model, intensity(self._energy), stage)
            except Exception as error:  # an extra: what was measured is in the ledger
                self.warnings.append(f"{path} was not written: {type(error).__name__}: {error}")


def _named(refused: dict[str, str], reason: str) -> str:
    names = [name for name, why in refused.items() if why == reason]
    return f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'}"


class Trace:
    """The attempt's samples as compact CSV, compressed at the end. A full disk costs rows, not the stage."""

    COLUMNS = "elapsed_s,gpu_w,gpu_j,cpu_j,dram_j,tokens,work_j,module_j\n"

    def __init__(self, path: Path) -> None:
        self._path = path
        self.lost_rows = 0
        self._handle = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = path.open("wb", buffering=0)
            self._handle.write(self.COLUMNS.encode())
        except OSError:
            self.lost_rows += 1

    def row(self, elapsed: float, figures: dict[str, Figure], tokens: int | None, work_joules: float) -> None:
        """Write one sample: joules of the host by component, and the job's in the work phase."""
        joules = {name: figure.joules for name, figure in figures.items()}
        watts = figures.get("module", figures["gpu"]).watts
        values = [watts, *(joules[name] for name in ("gpu", "cpu", "dram")), tokens, work_joules, joules.get("module")]
        text = f"{elapsed:.3f}," + ",".join("" if v is None else f"{v:.7g}" for v in values) + "\n"
        try:
            if self._handle is None or self._handle.write(text.encode()) != len(text):
                self.lost_rows += 1
        except OSError:
            self.lost_rows += 1

    def close(self) -> Path:
        """Compress; returns where the trace is."""
        compressed = self._path.with_suffix(".csv.gz")
        try:
            if self._handle is not None:
                self._handle.close()
            with self._path.open("rb") as source, gzip.open(compressed, "wb") as target:
                shutil.copyfileobj(source, target)
            self._path.unlink()
        except OSError:
            with contextlib.suppress(OSError):
                compressed.unlink(missing_ok=True)
            return self._path
        return compressed
