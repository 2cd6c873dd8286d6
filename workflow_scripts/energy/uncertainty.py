"""The energy value: joules with class, boundary and half-width by instrument, however often they are added up or shared out.

An instrument of one host, or of one set of GPUs, errs in one direction (systematic, JCGM 100:2008, 5.2): the half-widths of its
figures add up linearly. Instruments are independent of each other, and so are those of two hosts: they add in quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

CLASSES = ("measured", "integrated", "modelled", "unavailable")  # best first
KWH = 3.6e6  # J
Instrument = tuple[str, str]  # name, and its host or its GPUs


def instrument(method: str | None) -> str:
    """The instrument behind a method: figures of one instrument err together. CodeCarbon's models of CPU and RAM are two."""
    words = (method or "unknown").split()
    return " ".join(words[:2]) if words[0] == "CodeCarbon" else words[0]


def worst(classes: Iterable[str]) -> str:
    """The worst class of the parts of a sum; `unavailable` without parts."""
    return max(classes, key=CLASSES.index, default="unavailable")


@dataclass(frozen=True)
class Energy:
    """Joules and their half-widths by instrument, with the worst class of the parts and the boundaries of their stages.

    `errors` is None when a half-width is not known.
    """

    value: float
    errors: Mapping[Instrument, float] | None = field(default_factory=dict)
    energy_class: str | None = None
    boundaries: frozenset[str] = frozenset()

    def __add__(self, other: Energy) -> Energy:
        """The sum within one run, of the worst class."""
        errors = None
        if self.errors is not None and other.errors is not None:
            keys = {**self.errors, **other.errors}
            errors = {key: self.errors.get(key, 0.0) + other.errors.get(key, 0.0) for key in keys}
        known = [found for found in (self.energy_class, other.energy_class) if found is not None]
        both = self.boundaries | other.boundaries
        return Energy(self.value + other.value, errors, worst(known) if known else None, both)

    def scaled(self, factor: float) -> Energy:
        """The energy times a known number."""
        errors = None if self.errors is None else {key: width * factor for key, width in self.errors.items()}
        return replace(self, value=self.value * factor, errors=errors)

    @property
    def half_width(self) -> float | None:
        """Half-width by the instruments alone; None when it is not known."""
        return None if self.errors is None else math.hypot(*self.errors.values())

    @property
    def kwh(self) -> float:
        """Energy [kWh]."""
        return self.value / KWH

    @property
    def uncertainty_kwh(self) -> float | None:
        """Half-width [kWh]; None when it is not known."""
        return None if self.half_width is None else self.half_width / KWH

    @property
    def uncertainty_pct(self) -> float | None:
        """Half-width [%]; None when it is not known, or of nothing."""
        return percent(self.half_width, self.value)

    def with_errors_of(self, part: Energy) -> Energy:
        """The energy with the errors, class and boundaries of a part of it, errors in proportion."""
        if part.value <= 0:
            return replace(self, errors={} if self.value == 0 else None)
        return part.scaled(self.value / part.value)


def percent(half_width: float | None, value: float | None) -> float | None:
    """A half-width relative to its value [%]."""
    return 100 * half_width / value if half_width is not None and value else None


def total(energies: Iterable[Energy]) -> Energy:
    """Sum within one run; nothing is 0 J without a class."""
    return sum(energies, start=Energy(0.0))
