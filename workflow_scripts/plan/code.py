"""The source files that decide a stage's result, and the environment in which its command runs."""

from __future__ import annotations

import ast
import os
import sys
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
CODE_ROOMS = tuple(f"workflow_scripts.{room}" for room in ("stages", "distill", "accounting", "report", "plan.slices"))


@cache
def sources(module: str) -> tuple[str, ...]:
    """Source files that decide a stage's result: the module and what it imports from stages/, distill/, accounting/.

    Named as inputs of the rule, so that an edited file makes the stage stale while a touched one does not.
    """
    found: dict[Path, None] = {}
    todo = [PACKAGE / Path(*module.split(".")[1:]).with_suffix(".py")]
    while todo:
        path = todo.pop()
        if path in found or not path.is_file():
            continue
        found[path] = None
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                for name in [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]:
                    if name.startswith(CODE_ROOMS):
                        todo.append(PACKAGE / Path(*name.split(".")[1:]).with_suffix(".py"))
    return tuple(sorted(str(path) for path in found))


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
