"""Figures as people read them: few digits, the error with two, no exponent at common sizes."""

from __future__ import annotations

_UNITS = {"GWh": 1e6, "MWh": 1e3, "kWh": 1.0, "Wh": 1e-3, "mWh": 1e-6}  # kWh


def number(value: float | None, error: float | None = None, factor: float = 1.0, digits: int = 4) -> str:
    """Four digits, with an error of two where there is one; empty where the value is not known."""
    if value is None:
        return ""
    return rounded(value * factor, digits) + (f" ± {rounded(error * factor, 2)}" if error else "")


def rounded(value: float, digits: int) -> str:
    """A value rounded to so many significant digits."""
    return f"{float(f'{value:.{digits}g}'):.10g}"


def unit_of(kwh: float) -> tuple[float, str]:
    """Factor from kWh and the unit in which a quantity of this size is read well."""
    name = next((name for name, size in _UNITS.items() if abs(kwh) >= size), "mWh")
    return 1 / _UNITS[name], name
