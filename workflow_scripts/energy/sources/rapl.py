"""CPU package and DRAM energy counters of Linux powercap (RAPL)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from workflow_scripts.energy.sources.base import Counter, CounterError, Figure, ReadingError, guarded, unavailable

METHOD = "RAPL"
MOST_WATTS = 1000.0  # no package uses more: by it, how long a counter may go unread before it can wrap twice


@dataclass
class Zone:
    """One powercap zone: its label, its component (cpu, dram), how to read it [uJ], and where it wraps [uJ]."""

    label: str
    component: str
    read: Callable[[], int]
    wrap_at: int


class RaplSource:
    """Sums zones by component, each zone wrap-safe.

    A component has no figure while one of its zones cannot be read. A counter that answers again has gone on counting, unless
    it may have wrapped unseen or went back. `refused` are the components with a zone that could not be read at the start, with
    the reason: they are no components of this source. Raises ReadingError when there is no other.
    """

    def __init__(self, zones: list[Zone], now: float) -> None:
        self.refused: dict[str, str] = {}
        started = []
        for zone in zones:
            counter = Counter(1e-6, zone.wrap_at)
            try:
                counter.advance(now, guarded(zone.read))
            except ReadingError as error:
                self.refused.setdefault(zone.component, f"RAPL zone {zone.label} cannot be read: {error}")
            started.append(_Counted(zone, counter, now))
        self._zones = [counted for counted in started if counted.zone.component not in self.refused]
        if not self._zones:
            raise ReadingError(next(iter(self.refused.values())))

    def read(self, now: float) -> dict[str, Figure]:
        """Joules of all zones by component."""
        figures: dict[str, Figure] = {}
        for counted in self._zones:
            counted.advance(now)
            component, label = counted.zone.component, counted.zone.label
            figure = figures.setdefault(component, Figure(0.0, method=METHOD, energy_class="measured"))
            if counted.failure is not None:
                figure = figures[component] = unavailable(f"RAPL zone {label}: {counted.failure}", figure.devices)
            figure.devices[label] = counted.counter.joules
            if figure.joules is not None:
                figure.joules += counted.counter.joules
        return figures


@dataclass
class _Counted:
    zone: Zone
    counter: Counter
    read_at: float
    failure: str | None = None
    lost: bool = False  # the failure is for good

    def advance(self, now: float) -> None:
        try:
            raw = guarded(self.zone.read)
            silent = now - self.read_at
            if self.failure is not None and not self.lost and silent * MOST_WATTS > self.zone.wrap_at * 1e-6:
                raise CounterError(f"it could not be read for {silent:.0f} s, in which it may have wrapped")
            self.counter.advance(now, raw)
        except (CounterError, ReadingError) as error:
            self.failure = self.failure if self.lost else str(error)
            self.lost = self.lost or isinstance(error, CounterError)
        else:
            self.read_at = now
            self.failure = self.failure if self.lost else None


def find_zones(root: Path) -> list[Zone]:
    """Package and DRAM zones under `root` (/sys/class/powercap or one below it), whether they can be read or not.

    `psys` covers the packages and more, so it is left out. Raises ReadingError with the reason when there is none, or what a
    zone is cannot be read.
    """
    if not root.is_dir():
        raise ReadingError(f"no RAPL: {root} does not exist")
    zones = {}
    for folder in sorted([*root.glob("*"), *root.glob("*/*"), *root.glob("*/*/*")]):
        if folder.name.startswith("intel-rapl-mmio") or not (folder / "energy_uj").exists():
            continue  # the memory-mapped interface shows the same package a second time
        try:
            name = guarded(_text, folder / "name")
            component = "cpu" if name.startswith("package") else "dram" if name == "dram" else None
            if component is not None:
                wrap_at = guarded(lambda path=folder / "max_energy_range_uj": int(_text(path)))
                zones[folder.name] = Zone(f"{folder.name} {name}", component, _reader(folder / "energy_uj"), wrap_at)
        except ReadingError as error:
            raise ReadingError(f"RAPL zone {folder.name} cannot be read: {error}") from error
    if not zones:
        raise ReadingError(f"no RAPL: {root} has no package or dram zone")
    return list(zones.values())


def _reader(path: Path) -> Callable[[], int]:
    return lambda: int(_text(path))


def _text(path: Path) -> str:
    """A file's one line. Raises ReadingError where it is empty, as a kernel's file is while its driver is reloaded."""
    text = path.read_text().strip()
    if not text:
        raise ReadingError(f"{path.name} is empty")
    return text
