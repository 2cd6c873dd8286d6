"""FSDP (version 2) on two gloo processes: the losses and weights of one process, and the same again after a resume."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import REPOSITORY, Workflow


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the trainings of sharded_training.py."""
    folder = tmp_path_factory.mktemp("sharded")
    command = [sys.executable, "-m", "tests.integration.sharded_training", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr[-4000:]
    return folder


def losses(folder: Path) -> list[float]:
    return json.loads((folder / "losses.json").read_text())


def furthest(one: Path, two: Path) -> float:
    """Largest difference of any weight."""
    before, after = (load_file(folder / "weights.safetensors") for folder in (one, two))
    assert before.keys() == after.keys()
    return max(torch.max(torch.abs(before[name] - after[name])).item() for name in before)


@pytest.mark.parametrize("kind", ["kd", "dpo"])
def test_two_sharded_processes_train_as_one_and_resume(trainings: Path, kind: str) -> None:
    alone, sharded, resumed = (trainings / kind / run for run in ("alone", "sharded", "resumed"))
    assert len(losses(alone)) == 5 and losses(alone)[0] != losses(alone)[-1]
    assert losses(sharded) == pytest.approx(losses(alone), abs=1e-4)
    assert furthest(alone, sharded) < 1e-4
    assert losses(resumed) == losses(sharded) and furthest(sharded, resumed) == 0.0, "from checkpoint 3, bit for bit"


@pytest.mark.skipif(any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/kfd")), reason="this machine has a GPU")
def test_without_a_gpu_sharding_is_refused_before_the_first_job(finished: Workflow) -> None:
    shutil.rmtree(finished.folder / "results" / "teacher")
    (finished.folder / "results" / "demo_kd" / "final_model" / "manifest.json").unlink()
    (finished.folder / "sharded.yaml").write_text("training: {num_processes: 2, fsdp: true}\n")
    result = finished.snakemake("--cores", "1", "demo_kd", overlay="sharded.yaml", check=False)
    assert result.returncode == 1
    assert "experiment demo_kd: training.fsdp = true shards over GPUs, but this machine has none" in result.stderr
    assert not (finished.folder / "results" / "teacher").exists(), "nothing was started"
