"""W&B over a whole experiment: one offline run with the training's course and every stage's energy; the key is nowhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import Workflow
from tests.helpers.wandb_file import offline_runs
from tests.workflow.test_stale import edit, plan, set_key

KEY = "5ec2e7c0ffee5ec2e7c0ffee5ec2e7c0ffee5ec2"


def test_a_dpo_experiment_is_one_run_and_its_key_is_nowhere(finished: Workflow) -> None:
    edit(finished, "config/base.yaml", set_key("wandb", {"enabled": True, "mode": "offline", "log_interval": 1}))
    edit(finished, "tiny.yaml", set_key("training.eval_steps", 1))
    done = finished.snakemake("--cores", "2", "demo_dpo", WANDB_API_KEY=KEY)
    assert KEY not in done.stdout + done.stderr
    check_run(finished, "demo_dpo", "dpo_training")
    training = offline_runs(finished.folder / "results/demo_dpo/wandb")[0]
    for metric in ("train/rewards/accuracies", "eval/rewards/accuracies"):
        assert training.values(metric) and all(0 <= value <= 1 for value in training.values(metric).values()), metric
    assert files_with(finished.folder, KEY) == []
    for key, value in (("run_name", "another name"), ("mode", "online"), ("project", "other"), ("enabled", False)):
        edit(finished, "config/base.yaml", set_key(f"wandb.{key}", value))
        assert not [job for job in plan(finished, "demo_dpo") if not job.startswith("wandb_summary")], key


def test_enabled_afterwards_only_the_final_figures_are_logged(finished: Workflow) -> None:
    for folder in finished.folder.glob("results/*/wandb"):
        shutil.rmtree(folder)
    edit(finished, "config/base.yaml", set_key("wandb", {"enabled": True, "mode": "offline"}))
    (finished.folder / "results/demo_kd/wandb.json").unlink(missing_ok=True)
    assert set(plan(finished, "demo_kd")) == {"wandb_summary demo_kd"}
    finished.snakemake("--cores", "2", "demo_kd")
    (run,) = offline_runs(finished.folder / "results/demo_kd/wandb")
    summary = finished.json("results/demo_kd/experiment_summary.json")
    assert run.summary["energy/total/kwh"] == pytest.approx(summary["total_energy_kwh"])


def check_run(workflow: Workflow, name: str, stage: str) -> None:
    """The offline pieces of an experiment against the Trainer's own log, the stage records and the evaluation."""
    folder = workflow.folder / "results" / name
    training, last = offline_runs(folder / "wandb")
    summary = json.loads((folder / "experiment_summary.json").read_text())
    fingerprint = summary["stages"][stage]["provenance"]["fingerprint"]
    assert training.id == last.id == f"{name}-{fingerprint}" and training.name == name
    assert training.project == "distillation-energy-benchmark"
    states = (workflow.folder / "results/state" / stage / fingerprint / "checkpoints").glob("checkpoint-*/trainer_state.json")
    logged = max((json.loads(path.read_text()) for path in states), key=lambda s: s["global_step"])["log_history"]
    losses = {e["step"]: e["loss"] for e in logged if "loss" in e}
    assert losses and training.values("train/loss") == pytest.approx(losses)
    evaluated = {e["step"]: e["eval_loss"] for e in logged if "eval_loss" in e}
    assert evaluated and training.values("eval/loss") == pytest.approx(evaluated)
    live = list(training.values(f"energy/{stage}/joules").values())
    final = summary["stages"][stage]["total_energy_joules"]
    assert live and live == sorted(live) and live[0] > 0 and live[-1] <= final
    for each, record in summary["stages"].items():
        if "lineage" not in record:
            assert last.summary[f"energy/{each}/joules"] == pytest.approx(record["total_energy_joules"])
    assert last.summary["energy/total/kwh"] == pytest.approx(summary["total_energy_kwh"])
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert last.summary["quality/cross_entropy"] == pytest.approx(evaluation["cross_entropy"])
    assert last.config["pipeline"] == summary["pipeline"]
    note = json.loads((folder / "wandb.json").read_text())
    assert (note["id"], note["mode"], note["error"]) == (training.id, "offline", None)
    assert not any("processes behind" in text for text in summary["stages"][stage]["warnings"])


def files_with(folder: Path, text: str) -> list[Path]:
    """Files below a folder, logs of Snakemake and W&B among them, that hold a text."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.suffix == ".wandb" for path in paths) and any(".snakemake" in path.parts for path in paths)
    return [path for path in paths if path.suffix != ".safetensors" and text.encode() in path.read_bytes()]
