"""CPU and RAM as CodeCarbon models them, and CodeCarbon's own row per stage and attempt."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

from workflow_scripts.energy.sources.base import Figure, unavailable

RAM_METHOD = "CodeCarbon RAM model"
CPU_METHOD = "CodeCarbon"
FIELDS = {"cpu": "cpu_energy", "dram": "ram_energy"}


class CodeCarbonSource:
    """CPU and RAM as CodeCarbon models them, in machine mode, from a thread that starts beside the stage.

    Starting takes a second or two; the energy of that head is extrapolated at the mean power measured after it and reported
    in `gap_joules`, so that neither the stage waits nor its first seconds are lost.
    """

    SETTLE_S = 3.0
    PERIOD_S = 2
    LATEST_S = 2.0 * PERIOD_S

    def __init__(self, options: dict[str, Any], csv: Path) -> None:
        self._options, self._csv = options, csv
        self._tracker: Any = None
        self._totals: Any = None
        self._failure: str | None = None
        self._begin = time.monotonic()
        self._ready_at: float | None = None
        self._measured_at = 0.0
        self._head: dict[str, float] = {}
        self._watts: dict[str, float] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._start, name="codecarbon", daemon=True)
        self._thread.start()

    def _start(self) -> None:
        try:
            from codecarbon import EmissionsTracker, OfflineEmissionsTracker, OutputMethod

            logging.getLogger("codecarbon").setLevel(logging.CRITICAL)  # it speaks before it has read log_level
            from codecarbon.output_methods.base_output import BaseOutput

            source = self

            class Totals(BaseOutput):
                def live_out(self, total: Any, delta: Any) -> None:
                    source._keep(total)

                def out(self, total: Any, delta: Any) -> None:
                    source._keep(total)

            self._csv.parent.mkdir(parents=True, exist_ok=True)
            shared: dict[str, Any] = {
                "measure_power_secs": self.PERIOD_S,
                "api_call_interval": 1,
                "output_methods": [OutputMethod.CSV],
                "output_handlers": [Totals()],
                "output_dir": str(self._csv.parent),
                "output_file": self._csv.name,
                "log_level": "critical",
                "tracking_mode": "machine",
                "allow_multiple_runs": True,
                "pue": 1.0,
            }
            if self._options["offline_mode"]:
                tracker = OfflineEmissionsTracker(
                    country_iso_code=self._options["country_iso_code"], region=self._options["region"], **shared
                )
            else:
                tracker = EmissionsTracker(**shared)
            tracker.start()
            self._ready_at = time.monotonic()
            self._tracker = tracker
        except Exception as error:  # the stage must run without CodeCarbon; the record carries the reason
            self._failure = f"CodeCarbon: {type(error).__name__}: {error}"

    def _keep(self, total: Any) -> None:
        now = time.monotonic()
        with self._lock:
            if self._totals is not None and now - self._measured_at > 0.2:
                for component, field in FIELDS.items():
                    step = (getattr(total, field) - getattr(self._totals, field)) * 3.6e6
                    self._watts[component] = step / (now - self._measured_at)
            self._totals, self._measured_at = total, now

    def read(self, now: float) -> dict[str, Figure]:
        """CPU and RAM joules since the stage began, the head included."""
        with self._lock:
            totals, measured_at, watts = self._totals, self._measured_at, dict(self._watts)
        if totals is None or self._ready_at is None or measured_at - self._ready_at < 0.5:
            reason = self._failure or "CodeCarbon had not measured yet"
            return {"cpu": unavailable(reason), "dram": unavailable(reason)}
        covered = measured_at - self._ready_at
        figures = {}
        since = min(max(0.0, now - measured_at), self.LATEST_S)  # between its measurements go on at the newest power
        for component, method in (("cpu", self._cpu_method()), ("dram", RAM_METHOD)):
            joules = getattr(totals, FIELDS[component]) * 3.6e6
            if component not in self._head or covered < self.SETTLE_S:
                self._head[component] = joules / covered * (self._ready_at - self._begin)
            head = self._head[component]
            ahead = watts.get(component, joules / covered) * since
            figures[component] = Figure(joules + head + ahead, joules / covered, method, "modelled", gap_joules=head)
        return figures

    def _cpu_method(self) -> str:
        modes = [getattr(h, "_mode", "") for h in getattr(self._tracker, "_hardware", []) if type(h).__name__ == "CPU"]
        return f"{CPU_METHOD} {modes[0]}" if modes and modes[0] else CPU_METHOD

    def emissions(self) -> dict[str, Any] | None:
        """CodeCarbon's own totals: energy_kwh, emissions_kg, country, region; None when it measured nothing."""
        with self._lock:
            totals = self._totals
        if totals is None:
            return None
        return {
            "energy_kwh": totals.energy_consumed,
            "emissions_kg": totals.emissions,
            "country": totals.country_iso_code,
            "region": totals.region or None,
        }

    def close(self) -> None:
        """Take the last measurement and write CodeCarbon's row; a tracker that is still starting is left behind."""
        if self._tracker is not None:
            try:
                self._tracker.stop()
            except Exception as error:  # CodeCarbon's own file is an extra; what it measured is in the ledger
                logging.getLogger(__name__).warning("CodeCarbon did not stop cleanly: %s", error)
