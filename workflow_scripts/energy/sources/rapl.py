"""CPU package and DRAM energy counters of Linux powercap (RAPL)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from workflow_scripts.energy.sources.base import Counter, CounterError, Figure, unavailable

METHOD = "RAPL"


@dataclass
class Zone:
    """One powercap zone: its label, its component (cpu, dram), how to read it [uJ], and where it wraps [uJ]."""

    label: str
    component: str
    read: Callable[[], int]
    wrap_at: int


class RaplSource:
    """Sums zones by component, each zone wrap-safe. A zone that fails makes its component unavailable from then on."""

    def __init__(self, zones: list[Zone], now: float) -> None:
        self._zones = [(zone, Counter(1e-6, zone.wrap_at)) for zone in zones]
        self._failed: dict[str, str] = {}
        for zone, counter in self._zones:
            counter.advance(now, zone.read())

    def read(self, now: float) -> dict[str, Figure]:
        """Joules of all zones by component."""
        figures: dict[str, Figure] = {}
        for zone, counter in self._zones:
            figure = figures.setdefault(zone.component, Figure(0.0, method=METHOD, energy_class="measured"))
            try:
                counter.advance(now, zone.read())
            except (OSError, CounterError) as error:
                text = error.strerror if isinstance(error, OSError) else str(error)
                self._failed.setdefault(zone.component, f"RAPL zone {zone.label}: {text}")
            figure.devices[zone.label] = counter.joules
            if figure.joules is not None:
                figure.joules += counter.joules
        for component, reason in self._failed.items():
            devices = figures[component].devices
            figures[component] = unavailable(reason)
            figures[component].devices = devices
        return figures

    def close(self) -> None:
        """Nothing is held open."""


def find_zones(root: Path) -> list[Zone]:
    """Package and DRAM zones under `root` (/sys/class/powercap or one below it).

    `psys` covers the packages and more, so it is left out. Raises OSError with the reason when there is none or one cannot be
    read (kernels since 5.10 let only root read it).
    """
    if not root.is_dir():
        raise OSError(f"no RAPL: {root} does not exist")
    zones = {}
    for folder in sorted([*root.glob("*"), *root.glob("*/*"), *root.glob("*/*/*")]):
        if folder.name.startswith("intel-rapl-mmio") or not (folder / "energy_uj").exists():
            continue  # the memory-mapped interface shows the same package a second time
        name = (folder / "name").read_text().strip()
        component = "cpu" if name.startswith("package") else "dram" if name == "dram" else None
        if component is None:
            continue
        try:
            int((folder / "energy_uj").read_text())
            wrap_at = int((folder / "max_energy_range_uj").read_text())
        except OSError as error:
            raise OSError(f"RAPL zone {folder.name} {name} cannot be read: {error.strerror}") from None
        zones[folder.name] = Zone(f"{folder.name} {name}", component, _reader(folder / "energy_uj"), wrap_at)
    if not zones:
        raise OSError(f"no RAPL: {root} has no package or dram zone")
    return list(zones.values())


def _reader(path: Path) -> Callable[[], int]:
    return lambda: int(path.read_text())
