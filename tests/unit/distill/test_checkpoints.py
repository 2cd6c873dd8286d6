"""A damaged newest checkpoint is named and the one before is taken."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.helpers import tiny_training
from workflow_scripts.distill import checkpoints, training
from workflow_scripts.distill.work import NotFinite, WorkCallback


def make(folder: Path, step: int, sealed: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    torch.save({"step": torch.arange(1000)}, checkpoint / "optimizer.pt")
    (checkpoint / "model.safetensors").write_bytes(bytes(1000))
    if sealed:
        checkpoints.seal(checkpoint)
    return checkpoint


def test_the_whole_checkpoint_with_the_highest_number_is_resumed_from(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path) is None
    make(tmp_path, 9)
    tenth = make(tmp_path, 10)
    assert checkpoints.newest(tmp_path) == tenth, "by number, not by name"


def test_without_a_seal_a_checkpoint_was_cut(tmp_path: Path, capsys) -> None:
    whole = make(tmp_path, 1)
    make(tmp_path, 2, sealed=False)
    assert checkpoints.newest(tmp_path) == whole
    assert "checkpoint-2 is not resumed from: it was cut while it was written (no seal)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda c: (c / "model.safetensors").write_bytes(bytes(400)), "model.safetensors has 400 bytes, not 1000"),
        (lambda c: (c / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda c: flip(c / "optimizer.pt"), "optimizer.pt is damaged at "),
    ],
)
def test_a_damaged_checkpoint_falls_back_and_says_so(tmp_path: Path, capsys, damage, said: str) -> None:
    whole = make(tmp_path, 1)
    damage(make(tmp_path, 2))
    assert checkpoints.newest(tmp_path) == whole
    assert f"checkpoint-2 is not resumed from: {said}" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"], "it must not count when old ones make room"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    where = content.find(torch.arange(1000).numpy().tobytes()[:800])
    assert where > 0
    content[where + 400] ^= 1
    path.write_bytes(content)


def test_nothing_whole_means_from_the_start(tmp_path: Path) -> None:
    (make(tmp_path, 1) / "model.safetensors").unlink()
    assert checkpoints.newest(tmp_path) is None


def test_a_loss_that_is_no_number_ends_the_training_at_its_step(tmp_path: Path, monkeypatch) -> None:
    student = tiny_training.model("sdpa")
    with torch.no_grad():
        student.lm_head.weight[5, 0] = float("nan")
    monkeypatch.setattr(tiny_training, "model", lambda attention: student)
    with pytest.raises(NotFinite, match=r"^loss is not finite at step 1: lower training.learning_rate"):
        tiny_training.train(tmp_path)
    assert checkpoints.newest(tmp_path) is None


@pytest.mark.parametrize(
    ("at", "options", "saved"), [(2, {"save_steps": 1}, [1]), (-1, {"keep_checkpoints": False}, [])], ids=["saved", "last"]
)
def test_weights_that_are_no_numbers_are_no_checkpoint_and_no_model(
    tmp_path: Path, monkeypatch, at: int, options: dict[str, object], saved: list[int]
) -> None:
    """The gradient of the last step spoils them, so that no loss tells."""
    student = tiny_training.model("sdpa")
    monkeypatch.setattr(tiny_training, "model", lambda attention: student)

    def spoil(step: int, callback: WorkCallback) -> None:
        if step == at % (len(callback._steps) + 1):
            student.lm_head.weight.data[5, 0] = float("nan")

    with pytest.raises(NotFinite, match="a weight is not finite at step"):
        tiny_training.train(tmp_path, each_step=spoil, token_budget=200, **options)
    found = checkpoints.newest(tmp_path)
    assert ([] if found is None else [checkpoints.step(found)]) == saved


def test_a_signal_in_the_last_evaluation_does_not_lose_a_training_without_checkpoints(tmp_path: Path, monkeypatch) -> None:
    evaluate = training.DistillationTrainer.evaluate

    def told_to_stop(self, *args, **more):
        if self.state.global_step == self.state.max_steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, *args, **more)

    monkeypatch.setattr(training.DistillationTrainer, "evaluate", told_to_stop)
    trained = tiny_training.train(tmp_path, held_out=4, eval_steps=1, keep_checkpoints=False)
    assert (trained.callback.signal, trained.metrics["ended_by"]) == (signal.SIGTERM, "token_budget")
    assert checkpoints.newest(tmp_path) is None
