"""Values out of files of unknown quality, and what an import says of its files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BeforeValidator

KINDS = ("imported", "read", "dropped", "set to null", "refused", "missing", "noted")
QUARTER_HOUR = 900.0  # s; every time zone's distance from UTC is a multiple of it


def _finite(value: Any) -> float | None:
    """A finite number; None for anything else."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number else None


def not_negative(text: str) -> float | None:
    """The finite number that a cell of a table holds, None also where it is below 0."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < math.inf else None


Number = Annotated[float | None, BeforeValidator(_finite)]


def nested(content: Any, path: str) -> Any:
    """Value at a dotted path, None where it ends early."""
    for key in path.split("."):
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


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


class Report:
    """Findings by kind: (where, text); the same finding twice counts once."""

    def __init__(self) -> None:
        self._found: dict[str, dict[tuple[str, str], None]] = {kind: {} for kind in KINDS}

    def add(self, kind: str, where: object, text: str) -> None:
        """Remember one finding."""
        self._found[kind][str(where), text] = None

    def render(self, details: bool = False) -> str:
        """A line for each kind with the number of its findings, with `details` also a line for each finding."""
        lines = []
        for kind, found in self._found.items():
            lines += [f"{kind}: {len(found)}", *(f"  {where}: {text}" for where, text in found if details)]
        return "\n".join(lines)
