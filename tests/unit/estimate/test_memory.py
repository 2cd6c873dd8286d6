"""The memory estimate against what torch and transformers really keep."""

from __future__ import annotations

import copy
import typing
from pathlib import Path

import pytest
import torch
from transformers import Olmo2Config, Olmo2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from workflow_scripts.distill.adapters import add_adapters
from workflow_scripts.distill.logit_cache import Shard, write_shard
from workflow_scripts.estimate import memory
from workflow_scripts.estimate.work import Task
from workflow_scripts.settings import load_experiments
from workflow_scripts.settings.load import read_yaml
from workflow_scripts.settings.schema import Lora, Training
from workflow_scripts.settings.shapes import SHAPES, Shape, config_values

CONFIG = Path(__file__).parents[3] / "config"
SMALL = Shape(64, 256, 3, 4, 4, vocab_size=128)
GROUPED = Shape(64, 256, 3, 8, 2, vocab_size=128)


@pytest.fixture(scope="module")
def experiments():
    return load_experiments(CONFIG, read_yaml(CONFIG / "base.yaml"), read_yaml(CONFIG / "olmo2.yaml"))


def need(settings, stage: str) -> memory.Need:
    return next(found for found in memory.stages(settings) if found.stage == stage)


def model_of(shape: Shape):
    torch.manual_seed(0)
    return Olmo2ForCausalLM(Olmo2Config(**config_values(shape), pad_token_id=0, eos_token_id=2))


@pytest.mark.parametrize("shape", [SMALL, GROUPED])
def test_key_value_cache_has_the_bytes_of_the_library_s(shape: Shape) -> None:
    with torch.no_grad():
        cache = model_of(shape).bfloat16()(torch.ones(2, 10, dtype=torch.long), use_cache=True).past_key_values
    kept = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert memory.key_value_bytes(shape, 20) == kept


@pytest.mark.parametrize(("shape", "least"), [(SMALL, 0.9), (GROUPED, 0.7)])
def test_activations_bound_what_a_layer_saves_for_the_backward_pass(shape: Shape, least: float) -> None:
    model, saved = model_of(shape), {}
    layer, tokens = model.model.layers[0], 4 * 64
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    hidden = torch.randn(4, 64, shape.hidden_size, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        position = model.model.rotary_emb(hidden, torch.arange(64)[None])
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            layer(hidden, position_embeddings=position, attention_mask=None)
    copies = sum(2 * p.numel() for p in layer.parameters() if p.dim() == 2)
    measured = sum(size for size, _ in saved.values()) - copies
    estimate = memory._one_layer(shape, tokens)
    assert least * estimate <= measured <= estimate


def test_weights_gradients_and_optimizer_are_those_of_a_step() -> None:
    model = model_of(SMALL)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    states = sum(t.numel() * 4 for state in optimizer.state.values() for t in state.values() if t.numel() > 1)
    assert states == memory.OPTIMIZER_BYTES["adamw"] * SMALL.parameters()
    assert sum(p.numel() * 4 for p in model.parameters()) == 4 * SMALL.parameters()
    known = typing.get_args(Training.model_fields["optimizer"].annotation)
    assert set(known) <= set(memory.OPTIMIZER_BYTES)


def test_every_stage_of_7b_to_1b_fits_one_gpu_of_48_gb(experiments) -> None:
    for name in ("kd_7b_to_1b", "sft_7b_to_1b", "dpo_7b_to_1b", "baseline_1b"):
        for found in memory.stages(experiments[name]):
            assert found.gpus(48) == found.gpus(80) == 1, f"{name} {found}"
    training = need(experiments["kd_7b_to_1b"], "student_train").parts
    parameters = SHAPES["olmo2-1b"].parameters()
    assert (training["weights"], training["gradients"], training["optimizer"]) == (
        4 * parameters,
        4 * parameters,
        8 * parameters,
    )
    assert training["residual stream"] == 4 * 8 * 1024 * 2048 * 16


def test_32b_needs_several_and_says_how_many(experiments) -> None:
    assert need(experiments["kd_32b_to_1b"], "logit_caching").gpus(80) == 1
    assert need(experiments["kd_32b_to_1b"], "logit_caching").gpus(48) == 2
    assert need(experiments["kd_32b_to_7b"], "student_train").gpus(48) == 4
    assert need(experiments["sft_32b_to_13b"], "student_train").gpus(80) == 4
    assert need(experiments["sft_32b_to_13b"], "student_train").gpus(48) is None
    assert need(experiments["sft_32b_to_13b"], "evaluation").gpus(80) == 2


def test_without_checkpointing_all_layers_activations_stay(experiments) -> None:
    settings = experiments["kd_7b_to_1b"]
    without = settings.model_copy(update={"training": settings.training.model_copy(update={"gradient_checkpointing": False})})
    one, all_layers = (need(s, "student_train").parts["activations"] for s in (settings, without))
    assert all_layers == 16 * one


def test_the_command_prints_a_table_and_names_what_it_does_not_know(capsys, tmp_path) -> None:
    assert memory.main(["kd_7b_to_1b", "--gpu-gb", "24"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "kd_7b_to_1b" and lines[1].split()[:2] == ["stage", "GB"]
    assert [line.split()[0] for line in lines[2:]] == ["logit_caching", "student_train", "evaluation"]
    assert lines[3].split()[2] == "-"
    assert memory.main(["demo_kd"]) == 1
    assert "the shape of models.smollm2-135m-instruct is not known before it is prepared" in capsys.readouterr().err
    assert memory.main(["kd_7b_to_2b"]) == 1
    assert "'kd_7b_to_2b' is no experiment" in capsys.readouterr().err


def test_the_teacher_s_type_decides_its_own_stages_only(experiments) -> None:
    settings = experiments["kd_7b_to_1b"]
    full = settings.model_copy(update={"teacher": settings.teacher.model_copy(update={"dtype": "float32"})})
    half, whole = ({found.stage: found.parts["weights"] for found in memory.stages(s)} for s in (settings, full))
    assert whole.pop("logit_caching") == 2 * half.pop("logit_caching") and whole == half


def test_a_local_config_tells_the_shape(experiments, tmp_path) -> None:
    values = copy.deepcopy(config_values(GROUPED))
    Olmo2Config(**values, pad_token_id=0, eos_token_id=2).save_pretrained(tmp_path)
    assert memory.shape_of(str(tmp_path), experiments["kd_7b_to_1b"]) == GROUPED
    with pytest.raises(memory.UnpricedError, match="the shape of who/knows is not known"):
        memory.shape_of("who/knows", experiments["kd_7b_to_1b"])
    (tmp_path / "config.json").write_text('{"n_layer": 12, "n_head": 12}')
    with pytest.raises(memory.UnpricedError, match="config.json is not that of a plain decoder: 'num_attention_heads'"):
        memory.shape_of(str(tmp_path), experiments["kd_7b_to_1b"])


def test_heads_of_a_width_of_their_own_and_tied_embeddings_are_counted(experiments, tmp_path) -> None:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32, "vocab_size": 60}
    config = Qwen3Config(**sizes, intermediate_size=48, head_dim=16, tie_word_embeddings=True)
    config.save_pretrained(tmp_path)
    shape, model = memory.shape_of(str(tmp_path), experiments["kd_7b_to_1b"]), Qwen3ForCausalLM(config)
    assert (shape.query_size, shape.key_value_size) == (64, 32)
    norms = 2 * (64 + 32 - 2 * 16)  # of a head's width here, of the whole projection in OLMo 2
    assert shape.parameters() - norms == sum(parameter.numel() for parameter in model.parameters())


def test_every_round_of_opd_has_its_texts_and_its_scores(experiments) -> None:
    settings = experiments["opd_7b_to_1b"]
    once = settings.model_copy(update={"opd": settings.opd.model_copy(update={"rounds": 1})})
    one, four = ({n.stage: n for n in memory.stages(s)} for s in (once, settings))
    assert settings.opd.rounds == 4 and four["student_train"].seconds == one["student_train"].seconds
    assert {four[n].seconds / one[n].seconds for n in ("rollout", "logit_caching")} == {4.0}
    assert four["logit_caching"].disk == 4 * one["logit_caching"].disk


def test_adapters_are_counted_as_peft_makes_them_and_a_1b_student_fits_24_gb(experiments) -> None:
    model, lora = model_of(GROUPED), Lora(rank=4)
    add_adapters(model, lora, 0)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert GROUPED.adapter_parameters(lora.rank, lora.target_modules) == trained
    whole = experiments["kd_7b_to_1b"]
    own = whole.model_copy(update={"training": whole.training.model_copy(update={"lora": Lora()})})
    parts = need(own, "student_train").parts
    assert parts["gradients"] < 0.02 * need(whole, "student_train").parts["gradients"]
    assert need(whole, "student_train").gpus(24) is None and need(own, "student_train").gpus(24) == 1
    assert need(own, "student_train").disk < need(whole, "student_train").disk


def test_what_a_logit_cache_leaves_on_disk_is_what_a_shard_has(experiments, tmp_path: Path) -> None:
    settings = experiments["kd_7b_to_1b"]
    shape, k = SHAPES["olmo2-7b"], settings.distillation.top_k_logits
    positions = 512
    ids = torch.stack([torch.randperm(shape.vocab_size)[:k] for _ in range(8)]).repeat(positions // 8, 1)
    temperatures = len(settings.distillation.cache_temperatures)
    rows = Shard([0], [positions], ids, torch.randn(positions, k).half(), torch.zeros(positions, temperatures))
    write_shard(tmp_path / "s.safetensors", rows, shape.vocab_size)
    task = Task("logit_caching", {}, {"teacher": settings.model.teacher}, memory.Shapes(settings))
    stated = memory._position_bytes(task, settings)
    assert (tmp_path / "s.safetensors").stat().st_size / positions == pytest.approx(stated, rel=0.03)
