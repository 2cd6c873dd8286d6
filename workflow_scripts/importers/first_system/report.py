"""What an import has read, dropped, set to null and refused, each with its place and reason."""

from __future__ import annotations

from dataclasses import dataclass, field

KINDS = {
    "imported": "imported",
    "read": "files read",
    "dropped": "dropped (counted elsewhere)",
    "null": "set to null",
    "refused": "refused (unreadable or no data of the first system)",
    "missing": "missing",
    "noted": "noted",
}


@dataclass
class Report:
    """Lines by kind: (where, text)."""

    lines: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    def add(self, kind: str, where: object, text: str) -> None:
        """Remember one finding; the same finding twice counts once."""
        if (str(where), text) not in self.lines[kind]:
            self.lines[kind].append((str(where), text))

    def render(self) -> list[str]:
        """Everything but the files that were read whole, which are only counted."""
        shown = []
        for kind, title in KINDS.items():
            shown.append(f"{title}: {len(self.lines[kind])}")
            if kind != "read":
                shown += [f"  {where}: {text}" for where, text in self.lines[kind]]
        return shown
