"""Low-rank adapters: what they train, what is written, and what goes on after a kill."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers import tiny_training
from tests.unit.distill.test_olmo2_template import tokenizer  # noqa: F401
from tests.unit.stages.test_own_tokenizer import made  # noqa: F401
from tests.unit.stages.test_rollouts import folder, trained  # noqa: F401
from workflow_scripts.artefact import read_json
from workflow_scripts.distill import adapters
from workflow_scripts.distill.losses import fused_distillation_loss
from workflow_scripts.distill.models import ModelError
from workflow_scripts.settings.schema import Lora, Training

LORA = {"rank": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}


def test_the_model_that_is_written_is_the_base_with_its_adapters_merged(
    folder: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on = folder / "c" / "t" / "manifest.json"
    weights = trained(folder, on, None, "baseline", monkeypatch, lora=LORA)
    start = AutoModelForCausalLM.from_pretrained(folder / "p").state_dict()
    assert weights.keys() == start.keys()
    changed = {name for name in start if not torch.equal(weights[name], start[name])}
    targets = tuple(f"{name}.weight" for name in LORA["target_modules"])
    assert changed == {name for name in start if name.endswith(targets)}
    there = folder / "baseline" / "final_model"
    assert "adapter/adapter_model.safetensors" in read_json(there / "manifest.json")["files"]
    base = AutoModelForCausalLM.from_pretrained(folder / "p")
    merged = peft.PeftModel.from_pretrained(base, there / adapters.FOLDER).merge_and_unload()
    for name, value in merged.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-6)
    assert read_json(there / adapters.FOLDER / "adapter_config.json")["base_model_name_or_path"] == "p"


def test_a_training_goes_on_from_a_checkpoint_to_the_same_adapters(tmp_path: Path, capsys) -> None:
    whole = tiny_training.train(tmp_path / "whole", lora=LORA, save_steps=1)

    def stop(step: int, _: object) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_training.train(tmp_path / "cut", each_step=stop, lora=LORA, save_steps=1)
    again = tiny_training.train(tmp_path / "cut", lora=LORA, save_steps=1)
    assert "resuming from checkpoint-2" in capsys.readouterr().out
    for name, value in whole.weights.items():
        assert torch.equal(value, again.weights[name]), name


def test_a_frozen_head_has_no_gradient_and_changes_none_of_the_others() -> None:
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(9, 8), torch.randn(20, 8), torch.randint(20, (9,))
    found = []
    for trains in (True, False):
        states, head = hidden.clone().requires_grad_(), weight.clone().requires_grad_(trains)
        fused_distillation_loss(states, head, targets).total.backward()
        found.append(states.grad)
        assert (head.grad is None) is not trains
    assert torch.equal(*found)


def test_a_target_that_the_model_does_not_have_is_named_with_those_that_it_has() -> None:
    message = "target_modules: the model has no linear layer qkv, lm_head in its decoder: choose of down_proj, gate_proj"
    with pytest.raises(ModelError, match=message):
        adapters.add_adapters(tiny_training.model(), Lora(target_modules=["q_proj", "qkv", "lm_head"]), 0)


def test_adapters_and_shards_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="lora and fsdp = true exclude each other"):
        Training(token_budget=1, learning_rate=0.1, batch_size=2, num_processes=2, fsdp=True, lora=Lora())
