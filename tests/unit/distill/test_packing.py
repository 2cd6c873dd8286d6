"""Packed rows give what each row gives alone: logits, losses, gradients, whole trainings."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma3TextConfig, Lfm2Config, LlamaConfig, MistralConfig, Olmo2Config, Qwen2Config, Qwen3Config
from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids

from tests.helpers.tiny_training import SIZES, VOCABULARY, model, rows, train
from workflow_scripts.distill.models import ModelError
from workflow_scripts.distill.packing import ROWWISE, attention_for, pack_rows
from workflow_scripts.distill.training import IGNORE, Collator, Stopped, _distillation_forward
from workflow_scripts.distill.work import WorkCallback
from workflow_scripts.settings.schema import Lora


def alone(of, data) -> torch.Tensor:
    """Logits [S, V] of the rows, each forwarded by itself."""
    with torch.no_grad():
        return torch.cat([of(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0] for row in data])


@pytest.mark.parametrize("config", [LlamaConfig, Olmo2Config, Qwen2Config, Qwen3Config])
@pytest.mark.parametrize("attention", [ROWWISE, "sdpa", "eager"])
def test_packed_logits_equal_those_of_each_row_alone(config, attention: str) -> None:
    data = rows(6)
    expected = alone(model("eager", config(**SIZES)), data)
    batch, positions, lengths = pack_rows(data)
    with torch.no_grad():
        found = model(attention, config(**SIZES))(
            input_ids=batch.input_ids, position_ids=positions, row_lengths=lengths, use_cache=False
        ).logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.01


MIXED = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "head_dim": 16}


@pytest.mark.parametrize(("kind", "more"), [(MistralConfig, {}), (Gemma3TextConfig, MIXED)])
def test_a_sliding_window_is_kept_by_the_mask(tmp_path: Path, kind, more) -> None:
    """Rows longer than the window: the mask path is taken, and is right."""
    config = kind(**SIZES, **more, sliding_window=4)
    config.save_pretrained(tmp_path)
    assert attention_for("sdpa", True, tmp_path) == "sdpa"
    data = rows(6)
    batch, positions, lengths = pack_rows(data)
    with torch.no_grad():
        found = model("sdpa", config)(
            input_ids=batch.input_ids, position_ids=positions, row_lengths=lengths, use_cache=False
        ).logits[0]
    torch.testing.assert_close(found, alone(model("eager", config), data), rtol=1e-5, atol=1e-5)
    wide = alone(model("eager", kind(**SIZES, **more, sliding_window=64)), data)
    assert (found - wide).abs().max() > 1e-3, "the window matters on these rows"


def test_packed_rows_are_refused_where_layers_carry_a_state(tmp_path: Path) -> None:
    kinds = ["conv", "conv", "full_attention"]
    Lfm2Config(**SIZES | {"num_hidden_layers": 3}, layer_types=kinds).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="layers of conv mix packed rows: set training.packing to false"):
        attention_for("sdpa", True, tmp_path)
    assert attention_for("sdpa", False, tmp_path) == "sdpa"


def test_the_kernel_is_chosen_by_settings_and_model(tmp_path: Path) -> None:
    LlamaConfig(**SIZES).save_pretrained(tmp_path)
    assert attention_for("sdpa", True, tmp_path) == ROWWISE
    assert [attention_for(choice, True, tmp_path) for choice in ("eager", "flash_attention_2")] == [
        "eager",
        "flash_attention_2",
    ]
    assert attention_for("sdpa", False, tmp_path) == "sdpa"


def test_flash_attention_finds_the_same_rows_in_the_position_ids() -> None:
    _, positions, lengths = pack_rows(rows(5))
    (bounds, _), (longest, _) = prepare_fa_kwargs_from_position_ids(positions)
    assert bounds.diff().tolist() == lengths and int(longest) == max(lengths)


def test_rowwise_attention_refuses_a_padded_batch() -> None:
    with pytest.raises(ValueError, match="needs row_lengths"):
        model(ROWWISE)(input_ids=torch.tensor([[3, 4, 5]]), use_cache=False)


def test_rows_are_laid_out_one_after_the_other() -> None:
    data = [{"input_ids": [5, 6, 7, 8], "loss_mask": [1, 0, 1, 1]}, {"input_ids": [9, 4], "loss_mask": [1, 1]}]
    batch = Collator(data, [], 0, packing=True)([{"row": 0}, {"row": 1}])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 4]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1]]
    assert batch["labels"].tolist() == [[IGNORE, IGNORE, 7, 8, IGNORE, 4]], "a row does not predict the next one's first token"
    assert batch["row_lengths"] == [4, 2] and "attention_mask" not in batch


def test_shuffled_packed_batches_of_two_epochs_have_the_loss_and_gradient_of_one_row_at_a_time() -> None:
    data, order = rows(5), [3, 0, 4, 1, 2, 3, 0, 2, 1, 4]
    collate = Collator(data, [], 0, packing=True)

    def gradients(batches: list[list[int]]) -> tuple[float, torch.Tensor]:
        student = model(ROWWISE)
        total = torch.zeros(())
        for numbers in batches:
            terms = _distillation_forward(student, **collate([{"row": number} for number in numbers]))
            terms["loss"].backward()
            total += terms["loss"].detach()
        return total.item(), torch.cat([p.grad.flatten() for p in student.parameters()])

    packed, gradient = gradients([order[:4], order[4:8], order[8:]])
    single, expected = gradients([[number] for number in order])
    assert packed == pytest.approx(single, rel=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_a_row_does_not_see_its_neighbour() -> None:
    first, second = rows(2)
    other = copy.deepcopy(first)
    other["input_ids"] = [(token + 7) % VOCABULARY for token in first["input_ids"]]
    student, begin = model(ROWWISE), len(first["input_ids"])

    def logits(of) -> torch.Tensor:
        batch, positions, lengths = pack_rows([of, second])
        with torch.no_grad():
            return student(input_ids=batch.input_ids, position_ids=positions, row_lengths=lengths).logits[0]

    assert torch.equal(logits(first)[begin:], logits(other)[begin:])
    assert not torch.equal(logits(first)[:begin], logits(other)[:begin])


def test_a_training_with_packing_is_the_training_without(tmp_path: Path) -> None:
    """Same examples in every step, so the same losses and weights but for rounding; the padding is what differs."""
    packed = train(tmp_path / "packed", packing=True)
    padded = train(tmp_path / "padded", packing=False)
    assert len(packed.losses) == len(padded.losses) > 3
    assert packed.losses == pytest.approx(padded.losses, rel=1e-5)
    assert packed.losses[-1] < packed.losses[0]
    for name, value in packed.weights.items():
        torch.testing.assert_close(value, padded.weights[name], rtol=1e-3, atol=1e-4)
    counts = {kind: (packed.progress.tokens[kind], padded.progress.tokens[kind]) for kind in ("loss", "input", "padded")}
    assert counts["loss"][0] == counts["loss"][1] and counts["input"][0] == counts["input"][1]
    assert counts["padded"][0] == 0 < counts["padded"][1]
    assert packed.progress.examples == padded.progress.examples


def stop_after_two(step: int, callback: WorkCallback) -> None:
    if step == 2:
        callback.signal = 15


def test_a_resumed_packed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    with pytest.raises(Stopped, match="stopped by signal 15"):
        train(tmp_path / "cut", each_step=stop_after_two)
    resumed = train(tmp_path / "cut")
    assert resumed.progress.resumed["steps"] == 2
    assert all(torch.equal(value, resumed.weights[name]) for name, value in whole.weights.items()), "bit-equal"


@pytest.mark.parametrize("how", [{"packing": True}, {"packing": False}, {"lora": Lora()}])
def test_gradient_checkpointing_changes_neither_loss_nor_weights(tmp_path: Path, how: dict[str, Any]) -> None:
    plain = train(tmp_path / "plain", **how)
    checkpointed = train(tmp_path / "checkpointed", **how, gradient_checkpointing=True)
    assert plain.losses == checkpointed.losses and plain.losses[0] > plain.losses[-1]
    assert all(torch.equal(value, checkpointed.weights[name]) for name, value in plain.weights.items())


@pytest.mark.parametrize("packing", [True, False])
def test_the_held_out_loss_is_the_mean_over_loss_tokens(tmp_path: Path, packing: bool) -> None:
    """7 rows in batches of 4: the mean of the batches' means would be another number."""
    done = train(tmp_path / "run", packing=packing, held_out=7, eval_steps=2)
    data, student = rows(7, seed=9), model("eager")
    student.load_state_dict(done.weights)
    total, count = 0.0, 0
    for row in data:
        ids, mask = torch.tensor([row["input_ids"]]), torch.tensor(row["loss_mask"][1:]).bool()
        with torch.no_grad():
            log_p = torch.log_softmax(student(input_ids=ids).logits[0, :-1], -1)
        total -= log_p.gather(1, ids[0, 1:, None])[:, 0][mask].sum().item()
        count += int(mask.sum())
    evaluations = done.metrics["evaluations"]
    last = [entry for entry in evaluations if entry["step"] == len(done.losses)]
    assert [entry["step"] for entry in evaluations] == [2, 4, 5] and len(done.losses) == 5, "the last step, too"
    assert last and last[0]["eval_loss"] == pytest.approx(total / count, rel=1e-5)
    assert done.metrics["eval_loss"] == last[0]["eval_loss"]


@pytest.mark.slow
def test_compiled_layers_train_and_resume_as_plain_ones(tmp_path: Path) -> None:
    """Compiled code lies in the training's own folder; the names of the weights stay, so checkpoints fit both.

    Rounding differs, and Adam at a rate of 0.01 makes more of it: weights, which move by up to 0.05, agree to 0.001.
    """
    plain = train(tmp_path / "plain")
    with pytest.raises(Stopped, match="stopped by signal 15"):
        train(tmp_path / "compiled", each_step=stop_after_two, compile=True)
    assert list((tmp_path / "compiled" / "compiled").iterdir()), "something was compiled, and here"
    resumed = train(tmp_path / "compiled", compile=True)
    assert resumed.progress.resumed["steps"] == 2 and resumed.weights.keys() == plain.weights.keys()
    assert resumed.losses == pytest.approx(plain.losses, rel=1e-5)
    for name, value in plain.weights.items():
        torch.testing.assert_close(resumed.weights[name], value, rtol=0, atol=1e-3)
