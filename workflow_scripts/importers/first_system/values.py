"""Numbers out of files of unknown quality, and figures that carry their class or the reason why there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

QUARTER_HOUR = 900.0  # s; every time zone's distance from UTC is a multiple of it


@dataclass(frozen=True)
class Figure:
    """Energy [J] of one component, or None with the `reason`. `crosscheck` is what a second instrument says [J]."""

    joules: float | None
    energy_class: str = "unavailable"
    method: str | None = None
    scope: str = "host"
    reason: str | None = None
    crosscheck: float | None = None


def unknown(reason: str, scope: str = "host") -> Figure:
    """A figure that is not known."""
    return Figure(None, scope=scope, reason=reason)


def number(content: Mapping[str, Any], key: str) -> float | None:
    """A finite number; None when the key is missing or holds anything else."""
    value = content.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def nested(content: Mapping[str, Any], path: str) -> Any:
    """Value at a dotted path, None where it ends early."""
    value: Any = content
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def local_time(text: Any) -> float | None:
    """Seconds of a time without zone, as if it were UTC; None when it is none."""
    try:
        return datetime.fromisoformat(str(text)).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def zone_offset(local: float, seconds: float) -> tuple[float, float]:
    """Nearest distance from UTC [s] of a local time that should be the instant `seconds`, and what is left over [s]."""
    offset = round((local - seconds) / QUARTER_HOUR) * QUARTER_HOUR
    return offset, local - seconds - offset
