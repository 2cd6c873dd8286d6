"""The house: imports run one way, from a higher room to a lower one, and the tests mirror the rooms."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "workflow_scripts"
# From the lowest room up; a module beside the rooms is a room of its own.
ROOMS = (
    *("__init__", "errors", "artefact", "progress", "pipelines", "settings", "energy", "plan", "distill", "cluster", "logger"),
    *("accounting", "estimate", "report", "importers", "stages", "reference", "__main__"),
)


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def test_no_room_imports_a_higher_one() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        assert parts[0] in ROOMS, f"{parts[0]} has no place in the order of rooms"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("workflow_scripts"):
                names = (
                    [node.module] if node.module != "workflow_scripts" else [f"workflow_scripts.{a.name}" for a in node.names]
                )
                wrong += [
                    f"{'/'.join(parts)} imports {name}"
                    for name in names
                    if room(name) in ROOMS and ROOMS.index(room(name)) > ROOMS.index(parts[0])
                ]
    assert wrong == ["pipelines imports workflow_scripts.settings.schema"], "the registry knows the types of the settings only"


def test_no_file_is_longer_than_400_lines() -> None:
    folders = ("workflow_scripts", "benchmarks", "tests")
    long = {p: n for f in folders for p in (REPOSITORY / f).rglob("*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def test_the_unit_tests_mirror_the_package() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    mirrored = {path.name for path in (REPOSITORY / "tests" / "unit").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert mirrored - rooms <= {"benchmarks"} and rooms <= mirrored, (rooms - mirrored, mirrored - rooms)


def test_pipelines_are_named_in_the_registry_alone() -> None:
    """No branch on a pipeline's name, and no second table of the names, outside the registry."""
    from workflow_scripts.pipelines import PIPELINES

    found = []
    for path in PACKAGE.rglob("*.py"):
        if path.name == "pipelines.py" or "importers" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and n.value in PIPELINES}
            table = isinstance(node, ast.Dict | ast.Tuple | ast.List | ast.Set) and len(names) > 1
            branch = isinstance(node, ast.Compare) and names and "pipeline" in ast.unparse(node)
            if table or branch:
                found.append(f"{Path(path).relative_to(PACKAGE)}:{node.lineno}")
    assert found == []
