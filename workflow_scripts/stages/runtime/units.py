"""Units: the pieces of a teacher stage's work, each made once, by whichever part and attempt comes to it.

How the work is cut into units depends on the settings and the data only, never on the number of parts, so any split and any
order of completion gives the same units and the same merged artefact. Units lie in a folder that all parts of a stage share
(`progress.units_dir`): `unit-00012.json` with the unit's facts, written last, and for some stages a data file it names.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow_scripts.artefact import SCHEMA, ArtefactError, read_json, sha256, write_json
from workflow_scripts.errors import UserError
from workflow_scripts.progress import Progress, units_dir

_MERGED_INTO = "merged_into.json"


class UnitError(UserError):
    """Units that are missing or damaged, or more parts than units."""


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) of `of`; takes every `of`-th unit."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """From `1-of-4`. Raises UnitError for anything else."""
        found = re.fullmatch(r"(\d+)-of-(\d+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UnitError(f"--part {text}: expected N-of-M with N from 1 to M")
        return cls(int(found[1]), int(found[2]))

    def numbers(self, count: int) -> range:
        """The units of this part, of `count`."""
        return range(self.number - 1, count, self.of)


class Units:
    """The units of one stage, by number from 0."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.folder = units_dir()

    def data(self, name: str) -> Path:
        """Where a unit's data file is written."""
        return self.folder / name

    def find(self, name: str) -> Path:
        """Where a unit's data file is: here, or in the artefact that it was merged into."""
        merged = self.folder / _MERGED_INTO
        if not (self.folder / name).is_file() and merged.is_file():
            return (self.folder / read_json(merged)["folder"] / name).resolve()
        return self.folder / name

    def read(self, number: int) -> dict[str, Any] | None:
        """Facts of a unit that is whole, else None; a damaged one is named and removed, so that it is made again."""
        path = self._path(number)
        if not path.is_file():
            return None
        try:
            facts: dict[str, Any] = read_json(path)
        except ArtefactError:
            facts = {"damaged": True}
        file = self.find(facts["file"]) if "file" in facts else None
        missing = file is not None and not file.is_file()
        if not missing and "damaged" not in facts and (file is None or file.stat().st_size == facts["bytes"]):
            return facts
        print(f"unit {number} is {'gone' if missing else 'damaged'} ({file or path}): it is made again", flush=True)
        path.unlink()
        return None

    def save(self, number: int, facts: dict[str, Any], file: Path | None = None) -> None:
        """Declare a unit whole; `file` is its data, already in place."""
        if file is not None:
            facts |= {"file": file.name, "bytes": file.stat().st_size, "sha256": sha256(file)}
        write_json(self._path(number), facts)

    def todo(self, part: Part, setting: str, progress: Progress) -> Iterator[int]:
        """The part's units that are not there; those that are count as resumed work.

        Raises UnitError naming `setting` when there are more parts than units.
        """
        if part.of > self.count:
            raise UnitError(f"{setting} = {part.of}, but the work has {self.count} unit(s) only: lower it to {self.count}")
        done: dict[str, int] = {}
        missing = []
        for number in part.numbers(self.count):
            facts = self.read(number)
            if facts is None:
                missing.append(number)
            for key, value in (facts or {}).get("work", {}).items():
                done[key] = done.get(key, 0) + value
        if done:
            progress.resume(**done)
            print(f"{len(part.numbers(self.count)) - len(missing)} unit(s) are there from earlier attempts", flush=True)
        return iter(missing)

    def all(self, parts: list[Path], progress: Progress) -> list[dict[str, Any]]:
        """Facts of every unit in order, their work counted. Raises UnitError when one is missing or damaged.

        The manifests of `parts` are removed then, so that the next run makes the missing unit.
        """
        found = []
        for number in range(self.count):
            facts = self.read(number)
            if facts is not None and "file" in facts and sha256(self.find(facts["file"])) != facts["sha256"]:
                self._path(number).unlink()
                facts = None
            found.append(facts)
        missing = [number for number, facts in enumerate(found) if facts is None]
        if missing:
            for manifest in parts:
                manifest.unlink(missing_ok=True)
            raise UnitError(f"unit(s) {missing} of {self.folder} are missing or damaged: run again, they will be made anew")
        work: dict[str, int] = {}
        for facts in found:
            for key, value in (facts or {})["work"].items():
                work[key] = work.get(key, 0) + value
        progress.resume(**work)
        return [facts for facts in found if facts is not None]

    def link_into(self, name: str, folder: Path) -> None:
        """Put a unit's data file into `folder`, without a copy where the file system can."""
        try:
            os.link(self.find(name), folder / name)
        except OSError:
            shutil.copyfile(self.find(name), folder / name)

    def merged_into(self, folder: Path) -> None:
        """Remember the artefact that holds the data files now, and remove ours."""
        where = os.path.relpath(folder.resolve(), self.folder.resolve())
        write_json(self.folder / _MERGED_INTO, {"folder": where})
        for number in range(self.count):
            (self.folder / read_json(self._path(number))["file"]).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"unit-{number:05d}.json"


def finish_part(out: Path, part: Part, units: Units) -> None:
    """The manifest of a finished part, with the folder of the units for a merge that is started by hand."""
    facts = {"part": f"{part.number}-of-{part.of}", "units": units.count}
    write_json(
        out,
        {"schema": SCHEMA, "kind": "part", **facts, "folder": os.path.relpath(units.folder.resolve(), out.parent.resolve())},
    )


def unit_count(parts: list[Path]) -> int:
    """Number of units by the manifests of all parts. Raises UnitError when they disagree."""
    counts = {read_json(path)["units"] for path in parts}
    if len(counts) != 1:
        raise UnitError(f"the parts disagree on the number of units: {sorted(counts)}: delete {parts[0].parent} and run again")
    return int(counts.pop())
