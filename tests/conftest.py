"""Tiers and shared fixtures: a tiny random model, a copy of the workflow, and one finished tiny run.

The default tier is fast. What uses a finished run or mounts a disk, and all of tests/integration and tests/slurm, is
marked `slow` here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

REPOSITORY = Path(__file__).parents[1]
RUNS = os.environ.get("TEST_RUNS")  # folder of finished runs: used when they are there, else made there and kept
PARTS = ("Snakefile", "rules", "workflow_scripts", "config", "envs", "profiles")
MODULES_INIT = Path("/usr/share/modules/init/bash")
WITH_MODULES = ("--software-deployment-method", "env-modules")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault(
    "METER_HOSTS", str(Path(tempfile.gettempdir()) / f"power-models-{os.getuid()}")
)  # found once for all tests
needs_modules = pytest.mark.skipif(
    not MODULES_INIT.exists() and not os.environ.get("REQUIRE_SLURM"),
    reason="Debian's package environment-modules is not installed",
)


@dataclass
class Workflow:
    """A copy of the workflow in a folder of its own."""

    folder: Path
    overlay: Path

    def snakemake(
        self,
        *arguments: str,
        check: bool = True,
        overlay: str | None = None,
        program: tuple[str, ...] = ("-m", "snakemake"),
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run Snakemake in the copy with the tiny overlay, and one of the copy's own files over it."""
        overlays = [str(self.overlay), *([overlay] if overlay else [])]
        command = [sys.executable, *program, *arguments, "--configfile", *overlays]
        result = subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, check=False, env=os.environ | environment
        )
        if check and result.returncode != 0:
            raise AssertionError(f"snakemake {arguments} failed:\n{result.stdout[-4000:]}\n{result.stderr[-8000:]}")
        return result

    def path(self, pattern: str) -> Path:
        """The one file that matches."""
        found = sorted(self.folder.glob(pattern))
        assert len(found) == 1, f"{pattern}: {found}"
        return found[0]

    def json(self, pattern: str):
        """Content of the one JSON file that matches."""
        return json.loads(self.path(pattern).read_text())


def copy_workflow(destination: Path, downloads: Path) -> Workflow:
    """Copy the workflow's files and write the tiny overlay with a shared download folder."""
    destination.mkdir(parents=True)
    for part in PARTS:
        source = REPOSITORY / part
        if source.is_dir():
            shutil.copytree(source, destination / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, destination / part)
    overlay = destination / "tiny.yaml"
    tiny = (REPOSITORY / "tests" / "config" / "tiny.yaml").read_text()
    overlay.write_text(f"{tiny}\noutput:\n  download_dir: {downloads}\n")
    return Workflow(destination, overlay)


@pytest.fixture(scope="session")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Verified archives: those of a demo in this checkout when it is there, else downloaded once."""
    existing = REPOSITORY / "results" / "downloads"
    return existing if existing.is_dir() else shared_folder(tmp_path_factory) / "downloads"


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all processes of this test session (and all sessions with one TEST_RUNS) share."""
    if RUNS:
        return Path(RUNS).absolute()
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"tiny_run", "small_disk"} & set(getattr(item, "fixturenames", ())) or item.path.parent.name in (
            "integration",
            "slurm",
        ):
            item.add_marker(pytest.mark.slow)


@contextmanager
def made_once(folder: Path) -> Iterator[bool]:
    """Whether the caller is the one to make `folder`; a second process waits meanwhile. It is made when the block ends well."""
    done = folder.with_name(f"{folder.name}.done")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        yield not done.exists()
        done.touch()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Workflow:
    """All four demo experiments, run to the end at test size on the real teacher. Tests must not change it."""
    folder = shared_folder(tmp_path_factory) / "tiny"
    with made_once(folder) as mine:
        if mine:
            copy_workflow(folder, downloads).snakemake("--cores", "2")
    return Workflow(folder, folder / "tiny.yaml")


@pytest.fixture
def finished(tiny_run: Workflow, tmp_path: Path) -> Workflow:
    """A copy of the finished tiny run that a test may edit (files are linked; edits must replace, not append)."""
    folder = tmp_path / "workflow"
    shutil.copytree(tiny_run.folder, folder, copy_function=_link_or_copy, symlinks=True)
    return Workflow(folder, folder / "tiny.yaml")


@pytest.fixture
def modules(finished: Workflow) -> dict[str, str]:
    """A module `python-for-tests/1.0` whose Python notes that it ran; the environment in which bash has `module`."""
    folder, tools = finished.folder / "modules" / "python-for-tests", finished.folder / "tools"
    folder.mkdir(parents=True)
    tools.mkdir()
    (folder / "1.0").write_text(f"#%Module\nprepend-path PATH {tools}\n")
    (tools / "python").write_text(f'#!/bin/sh\necho "$LOADEDMODULES $*" >>{finished.folder}/seen\nexec {sys.executable} "$@"\n')
    (tools / "python").chmod(0o755)
    (finished.folder / "envs" / "modules.txt").write_text("python-for-tests/1.0 # its Python runs the stages\n")
    return {"BASH_ENV": str(MODULES_INIT), "MODULEPATH": str(folder.parent)}


def _link_or_copy(source: str, destination: str) -> None:
    if Path(source).stat().st_size > 1 << 20:
        os.link(source, destination)
    else:
        shutil.copy2(source, destination)


@pytest.fixture(scope="session")
def toy_model():
    """A random two-layer Llama with 97 tokens, in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model
