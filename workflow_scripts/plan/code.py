"""The code that decides a rule's result, as one digest, and the environment in which its command runs."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
# a parser is ten times as slow, and this runs at every plan
_IMPORT = re.compile(
    r"^[ \t]*(?:from (workflow_scripts[\w.]*) import (\([^)]*\)|[^\n]*)|import (workflow_scripts[\w.]+))", re.MULTILINE
)
# All first-party code that a stage imports decides its result, but for these modules. A list of what does not count errs
# towards a rerun; one of what does would err towards a wrong result.
DECIDES_NOTHING = {
    "workflow_scripts.pipelines": "what it declares stands in each job's settings, inputs and module",
    "workflow_scripts.settings.schema": "every section; those that a job reads count by their own modules",
    "workflow_scripts.settings.load": "what it reads stands in each job's settings",
    "workflow_scripts.errors": "words of a failure",
    "workflow_scripts.stages.runtime.tracking": "W&B and a link to the checkpoints",
    "workflow_scripts.stages.runtime.wandb_run": "W&B",
}


@cache
def sources(module: str) -> tuple[str, ...]:
    """Source files of a module and of the first-party modules that it imports, but for DECIDES_NOTHING.

    Templates count with the module `pages` beside them, which renders them, and JSON schemas with that of their folder's name.
    """
    found: dict[Path, None] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        path = PACKAGE / Path(*name.split(".")[1:]).with_suffix(".py")
        if path in found or not path.is_file() or (name != module and _left_out(name)):
            continue
        found[path] = None
        if path.stem == "pages":
            found |= dict.fromkeys((path.parent / "templates").glob("*.j2"))
        found |= dict.fromkeys(path.with_name(f"{path.stem}_schema").glob("*.json"))
        todo += _imports(path)
    return tuple(sorted(str(path) for path in found))


@cache
def _imports(path: Path) -> tuple[str, ...]:
    """First-party modules that a file imports, anywhere in it."""
    names: list[str] = []
    for module, imported, whole in _IMPORT.findall(path.read_text(encoding="utf-8")):
        names += [whole] if whole else [module, *(f"{module}.{name}" for name in re.findall(r"\w+", imported))]
    return tuple(name for name in names if name.startswith("workflow_scripts."))


def _left_out(name: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in DECIDES_NOTHING)


@cache
def code_digest(modules: tuple[str, ...], sections: tuple[str, ...] = ()) -> str:
    """Digest of the code of modules, and of the settings' sections whose values they read (their validators change values)."""
    read = [f"workflow_scripts.settings.{name}" for name in sections]
    files = {path for module in (*modules, *read) for path in sources(module)}
    digest = hashlib.sha256()
    for file in map(Path, sorted(files)):
        digest.update(f"{file.relative_to(PACKAGE)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def stage_environment(basedir: str) -> dict[str, str]:
    """PYTHONPATH and PATH for the rules' commands.

    Stages run as `python -m workflow_scripts…` from any working directory, with the Python that runs Snakemake unless a conda
    environment or a module puts its own before it.
    """
    known = [basedir, os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(path for path in known if path),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }
