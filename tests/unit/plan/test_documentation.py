"""What the pages name exists: linked files, make's targets, commands, experiments; the front page is one page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from workflow_scripts.__main__ import COMMANDS

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
PAGES += [REPOSITORY / "config" / "README.md", REPOSITORY / "benchmarks" / "README.md"]


def of(pattern: str, page: Path) -> list[str]:
    return re.findall(pattern, page.read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_what_a_page_names_is_there(page: Path) -> None:
    links = [link for link in of(r"\]\(([^)\s]+)\)", page) if not re.match(r"https?:|mailto:|#", link)]
    missing = [link for link in links if not (page.parent / link.partition("#")[0]).exists()]
    rules = re.findall(r"^([a-z- ]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)
    targets = {name for names in rules for name in names.split()}
    missing += [f"make {name}" for name in of(r"(?:^|`)make ([a-z][a-z-]+)", page) if name not in targets]
    missing += [name for name in of(r"python -m workflow_scripts ([a-z_]+)", page) if name not in COMMANDS]
    modules = of(r"python -m ((?:workflow_scripts|benchmarks)\.[a-z_.]+[a-z])", page)
    names = [module.replace(".", "/") for module in modules]
    missing += [name for name in names if not list(REPOSITORY.glob(f"{name}.py")) and not (REPOSITORY / name).is_dir()]
    missing += [f"experiment {n}" for n in of(r"^(?:\$ )?snakemake (?:-n )?([a-z]+_[a-z0-9_]+)", page) if n not in EXPERIMENTS]
    assert missing == []


EXPERIMENTS = {path.stem for path in (REPOSITORY / "config" / "experiments").glob("*.yaml")} | {"logit_caching"}


def test_the_front_page_is_one_page() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 120


def test_every_page_is_in_the_navigation() -> None:
    named = set(re.findall(r"- ([\w/]+\.md)", (REPOSITORY / "mkdocs.yml").read_text()))
    assert named == {str(page.relative_to(REPOSITORY / "docs")) for page in (REPOSITORY / "docs").rglob("*.md")}
