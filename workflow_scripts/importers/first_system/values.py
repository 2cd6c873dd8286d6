"""Values out of files of unknown quality, and what an import says of its files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BeforeValidator

KINDS = {
    "imported": "imported",
    "read": "files read",
    "dropped": "dropped (counted elsewhere)",
    "null": "set to null",
    "refused": "refused (unreadable or no data of the first system)",
    "missing": "missing",
    "noted": "noted",
}
QUARTER_HOUR = 900.0  # s; every time zone's distance from UTC is a multiple of it


def _finite(value: Any) -> float | None:
    """A finite number; None for anything else."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number else None


def float_or_none(text: str) -> float | None:
    """The finite number that a cell of a table holds."""
    try:
        return _finite(float(text))
    except ValueError:
        return None


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


@dataclass
class Report:
    """Lines by kind: (where, text)."""

    lines: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    def add(self, kind: str, where: object, text: str) -> None:
        """Remember one finding; the same finding twice counts once."""
        if (str(where), text) not in self.lines[kind]:
            self.lines[kind].append((str(where), text))

    def render(self) -> list[str]:
        """A line for each kind: how many findings."""
        return [f"{title}: {len(self.lines[kind])}" for kind, title in KINDS.items()]

    def details(self) -> str:
        """Every finding below the line of its kind."""
        found = [
            [line, *(f"  {where}: {text}" for where, text in self.lines[kind])]
            for line, kind in zip(self.render(), KINDS, strict=True)
        ]
        return "\n".join(line for lines in found for line in lines) + "\n"
