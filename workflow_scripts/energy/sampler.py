"""All sources of one attempt, read together: the best figure of each component, the share of the job, the power trace."""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import time
from pathlib import Path
from typing import Any

from workflow_scripts.energy.attribution import CpuShare, scope
from workflow_scripts.energy.sources.base import Figure, Source, unavailable
from workflow_scripts.energy.sources.codecarbon import CodeCarbonSource
from workflow_scripts.energy.sources.nvml import GpuSource, open_nvml
from workflow_scripts.energy.sources.rapl import RaplSource, find_zones
from workflow_scripts.energy.sources.slurm import consumed_energy

GAP_PERIODS = 2.0


class Sampler:
    """Opens what `energy` asks for; a source that cannot be opened leaves its reason with its components."""

    def __init__(self, energy: dict[str, Any]) -> None:
        self._energy = energy
        self.period = energy["nvml_poll_interval_ms"] / 1000
        now = time.monotonic()
        self.warnings: list[str] = []
        self._gpu: GpuSource | None = None
        self._rapl: Source | None = None
        self._codecarbon: CodeCarbonSource | None = None
        self._rapl_reason = self._gpu_reason = ""
        try:
            self._gpu, warning = open_nvml(now, GAP_PERIODS * self.period)
            self.warnings += [warning] if warning else []
        except OSError as error:
            self._gpu_reason = str(error)
        if energy["track_cpu"]:
            try:
                self._rapl = RaplSource(find_zones(Path(energy["rapl_root"])), now)
            except OSError as error:
                self._rapl_reason = str(error)
        self.scope = scope(energy["cpu_scope"], os.environ, os.cpu_count() or 1)
        self._cpu = CpuShare()
        self._share: float | None = None
        self._final: dict[str, Figure] | None = None
        self.gpu_peak: float | None = None
        self.samples, self.max_gap, self._last = 0, 0.0, now

    def start(self, csv: Path) -> None:
        """The stage has begun: start CodeCarbon beside it."""
        self._last = time.monotonic()
        if self._energy["track_cpu"] and self._energy["total_energy_policy"] != "gpu_only":
            self._codecarbon = CodeCarbonSource(self._energy, csv)

    def sample(self, now: float) -> dict[str, Figure]:
        """Take one sample of everything."""
        self.max_gap = max(self.max_gap, now - self._last)
        self._last = now
        self.samples += 1
        figures = self.figures(now)
        watts = figures["gpu"].watts
        if watts is not None:
            self.gpu_peak = max(self.gpu_peak or 0.0, watts)
        return figures

    def figures(self, now: float) -> dict[str, Figure]:
        """The best source of each component, the second best as its cross-check; after `stop`, those of the stage's end."""
        if self._final is not None:
            return self._final
        figures = {"gpu": self._gpu.read(now)["gpu"] if self._gpu else unavailable(self._gpu_reason)}
        modelled = self._codecarbon.read(now) if self._codecarbon else {}
        counted = self._rapl.read(now) if self._rapl else {}
        for name in ("cpu", "dram"):
            figures[name] = self._host_figure(name, counted, modelled)
        return figures

    def _host_figure(self, name: str, counted: dict[str, Figure], modelled: dict[str, Figure]) -> Figure:
        if not self._energy["track_cpu"]:
            return unavailable("energy.track_cpu = false")
        best, other = counted.get(name), modelled.get(name)
        only_modelled = self._energy["total_energy_policy"] == "codecarbon"
        if not only_modelled and best is not None and best.joules is not None:
            best.crosscheck = other.joules if other else None
            return best
        if other is not None and other.joules is not None:
            return other
        why_not = best.reason if best is not None and best.reason else self._rapl_reason or f"RAPL has no {name} zone"
        return unavailable(f"{why_not}; {other.reason if other else 'CodeCarbon was not asked'}")

    def attributed(self, figures: dict[str, Figure]) -> dict[str, float | None]:
        """Joules of each component that are the job's: its share of the host's, where the scope is the job."""
        shares = {"cpu": self._share, "dram": self._share} if self.scope == "job" else {}
        joules: dict[str, float | None] = {}
        for name, figure in figures.items():
            share = shares.get(name, 1.0)
            joules[name] = figure.joules * share if figure.joules is not None and share is not None else None
        return joules

    def read_share(self, root: int) -> None:
        """Update the job's share of the host's CPU time; `root` is the stage."""
        job, host = self._cpu.read(root)
        self._share = min(1.0, job / host) if host > 0 else None

    def line(self, now: float, begin: float, final: bool = False) -> dict[str, Any]:
        """Everything the ledger keeps of this instant."""
        figures = self.figures(now)
        if final and self._energy["slurm_energy"]:
            figures["node"] = consumed_energy()
        joules = {name: figure.as_json() for name, figure in figures.items()}
        attributed = self.attributed(figures)
        for name in ("cpu", "dram"):
            entry = joules[name]
            entry["share"] = self._share
            if self.scope == "job" and entry["joules"] is not None:
                entry["host_joules"], entry["joules"] = entry["joules"], attributed[name]
                if entry["joules"] is None:
                    entry |= {"class": "unavailable", "reason": "the job's share of CPU time is not known"}
        elapsed = now - begin
        expected = int(elapsed / self.period)
        return {
            "elapsed_s": elapsed,
            "joules": joules,
            "gpu_peak_watts": self.gpu_peak,
            "codecarbon": self._codecarbon.emissions() if self._codecarbon else None,
            "sampling": {
                "period_s": self.period,
                "n": self.samples,
                "expected": expected,
                "missed_pct": 100 * max(0, expected - self.samples) / expected if expected else None,
                "max_gap_s": self.max_gap,
                "j_in_gaps": sum(entry["gap_joules"] for entry in joules.values() if entry["joules"] is not None),
            },
            "warnings": self.warnings + [text for figure in figures.values() for text in figure.warnings],
        }

    def devices(self) -> list[dict[str, Any]]:
        """GPUs with temperature and foreign processes."""
        return self._gpu.describe(self._cpu.pids()) if self._gpu else []

    def stop(self, ended: float) -> None:
        """The stage has ended: read everything at once, then let CodeCarbon measure a last time and write its row.

        What CodeCarbon had not measured yet may be known after that.
        """
        final = self.figures(ended)
        if self._codecarbon is not None:
            self._codecarbon.close()
            late = self._codecarbon.read(ended)
            for name in ("cpu", "dram"):
                if final[name].joules is None and late[name].joules is not None:
                    final[name] = late[name]
        self._final = final

    def close(self) -> None:
        """Release all sources."""
        for source in (self._gpu, self._rapl):
            if source is not None:
                source.close()


class Trace:
    """The attempt's samples as compact CSV, compressed at the end. A full disk costs rows, not the stage."""

    COLUMNS = "elapsed_s,gpu_w,gpu_j,cpu_j,dram_j,tokens\n"

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

    def row(self, elapsed: float, figures: dict[str, Figure], tokens: int | None) -> None:
        """Write one sample."""
        values = [figures["gpu"].watts, figures["gpu"].joules, figures["cpu"].joules, figures["dram"].joules, tokens]
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
