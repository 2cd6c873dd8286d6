"""Two processes give the loss of one, through rule, meter and launcher."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.conftest import Workflow


def losses(workflow: Workflow) -> list[float]:
    newest = max(workflow.folder.glob("results/demo_kd/checkpoints/checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    history = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def weights(workflow: Workflow) -> dict[str, torch.Tensor]:
    return load_file(workflow.path("results/demo_kd/final_model/model.safetensors"))


def test_two_processes_train_as_one(tiny_run: Workflow, finished: Workflow) -> None:
    (finished.folder / "two.yaml").write_text("training: {num_processes: 2}\n")
    finished.snakemake("--cores", "2", "results/demo_kd/final_model/manifest.json", overlay="two.yaml")
    assert "torchrun" not in Path(finished.path("results/demo_kd/logs/student_train.log")).read_text()
    alone, both = losses(tiny_run), losses(finished)
    assert len(alone) > 0 and all(abs(a - b) < 1e-4 for a, b in zip(alone, both, strict=True)), (alone, both)
    before, after = weights(tiny_run), weights(finished)
    assert all(torch.allclose(before[name], after[name], rtol=0, atol=1e-4) for name in before)
    one, two = (w.json("results/demo_kd/stages/student_train.json") for w in (tiny_run, finished))
    assert one["work"]["loss"] == two["work"]["loss"] and one["work"]["examples"] == two["work"]["examples"]
    assert two["attempts"][-1]["hosts"] == [two["attempts"][-1]["host"]], "one host, counted once"
    command = finished.snakemake("-n", "-p", "-F", "results/demo_kd/final_model/manifest.json").stdout
    assert "workflow_scripts.cluster.launch" not in command, "one process needs no launcher"
