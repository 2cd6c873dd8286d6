"""What later stages need of a model folder, found before anything expensive: ends of turns, files, saving, decoder kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
)

from tests.unit.distill.test_olmo2_template import tokenizer  # noqa: F401
from workflow_scripts.artefact import read_json
from workflow_scripts.distill.generation import Prompt, ends_of_turns, generate
from workflow_scripts.distill.models import ModelError, compute_dtype, load_model, load_tokenizer, weight_hash
from workflow_scripts.plan import slices
from workflow_scripts.settings.schema import Generation
from workflow_scripts.stages.prepare_model import prepare_model
from workflow_scripts.stages.runtime.common import Arguments

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 260}


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Any) -> Path:  # noqa: F811
    """A whole random model with a tokenizer of one token per byte; its end token is 256, of 260 rows."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SMALL, eos_token_id=256, bos_token_id=None)).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | changes))


def prepared(folder: Path) -> dict[str, Any]:
    settings = slices.read(json.dumps({"models": {"m": {"source": "folder", "path": str(folder)}}}))
    out = folder.parent / "out" / "manifest.json"
    prepare_model(Arguments(settings, {}, out, {"download_dir": ""}))
    found: dict[str, Any] = read_json(out)
    return found


def test_all_ends_that_a_model_states_stop_its_answers(folder: Path) -> None:
    """Tokenizer, generation_config and config of many fine-tunes state different ones, the template a further one."""
    edit(folder / "generation_config.json", eos_token_id=[7, 9])
    edit(folder / "config.json", eos_token_id=11)
    facts = prepared(folder)
    assert facts["end_token_ids"] == [7, 9, 11, 256]
    ends = ends_of_turns(facts, {"end_token_id": 13})
    assert ends == [7, 9, 11, 13, 256]
    model = load_model(folder, torch.float32)
    prompt = Prompt(0, [1, 2, 3], 0)
    options = Generation(decoding_strategy="greedy", max_new_tokens=30)
    (free,) = next(generate(model, [prompt], options, [], 0))
    stop = free.token_ids[5]
    first = free.token_ids.index(stop)
    (stopped,) = next(generate(model, [prompt], options, [stop, 259], 0))
    assert (stopped.token_ids, stopped.end, stopped.truncated) == (free.token_ids[:first], stop, False)
    assert stopped.completion == free.token_ids[: first + 1] and stopped.generated == first + 1


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (
            lambda f: edit(f / "generation_config.json", eos_token_id=[256, 999]),
            "states the end token 999, but the tokenizer has",
        ),
        (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-2-of-2.safetensors"}}'),
            "lacks weight file.s. model-2-of-2.safetensors",
        ),
        (lambda f: (f / "config.json").rename(f / "adapter_config.json"), "is an adapter, not a model: merge it"),
        (lambda f: (f / "config.json").unlink(), "has no config.json: check the path"),
        (lambda f: edit(f / "generation_config.json", num_beams=1, early_stopping=True, do_sample=False), "cannot be saved"),
        (
            lambda f: T5Config(d_model=32, d_ff=32, num_layers=1, num_heads=2, d_kv=16).save_pretrained(f),
            "only plain text decoders",
        ),
        (lambda f: GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=260).save_pretrained(f), "has no plain"),
        (lambda f: edit(f / "config.json", vocab_size=200), "ids up to 257, the model's embedding 200 rows"),
        (lambda f: edit(f / "config.json", model_type="no_such_type"), "model folder .*no_such_type"),
    ],
)
def test_what_a_later_stage_would_fail_on_is_one_sentence_in_prepare_model(
    folder: Path, break_it: Callable[[Path], Any], words: str
) -> None:
    break_it(folder)
    with pytest.raises(ModelError, match=words):
        prepared(folder)


def test_a_tokenizer_without_an_end_is_refused_with_the_remedy(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", eos_token=None, pad_token=None)
    with pytest.raises(ModelError, match="neither a padding nor an end token: set eos_token in tokenizer_config.json"):
        load_tokenizer(folder)
    edit(folder / "tokenizer_config.json", pad_token="<|pad|>")
    edit(folder / "config.json", eos_token_id=None)
    edit(folder / "generation_config.json", eos_token_id=None)
    with pytest.raises(ModelError, match="neither tokenizer nor configuration states an end token"):
        prepared(folder)


def test_sampling_without_do_sample_is_repaired_and_said(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As published by many: it loads, and after a training it could not be saved."""
    monkeypatch.setenv("STAGE_PROGRESS", str(tmp_path / "progress.json"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 256, "temperature": 0.9, "top_p": 0.6}))
    prepared(folder)
    assert "sets sampling without do_sample" in capsys.readouterr().out
    assert "sets sampling without do_sample" in read_json(tmp_path / "progress.json")["warnings"][0]
    model = load_model(folder, torch.float32)
    model.generation_config.bos_token_id = 1  # as the Trainer does
    model.save_pretrained(tmp_path / "trained")
    assert read_json(tmp_path / "trained" / "generation_config.json")["temperature"] == 0.9
    assert json.loads((folder / "generation_config.json").read_text()).get("do_sample") is None, "the user's file stays"


@pytest.mark.parametrize(
    ("model", "config"),
    [
        (Qwen2ForCausalLM, Qwen2Config(**SMALL, num_key_value_heads=2, tie_word_embeddings=True)),
        (Qwen3ForCausalLM, Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True)),
        (
            Gemma3ForCausalLM,
            Gemma3TextConfig(
                **SMALL,
                num_key_value_heads=1,
                head_dim=16,
                sliding_window=8,
                layer_types=["sliding_attention", "full_attention"],
            ),
        ),
    ],
)
def test_decoders_of_other_families(tmp_path: Path, tokenizer: Any, model: Any, config: Any) -> None:  # noqa: F811
    torch.manual_seed(0)
    config.eos_token_id, config.bos_token_id, config.pad_token_id = 256, None, 257
    model(config).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    facts = prepared(tmp_path / "m")
    assert facts["vocab_size"] == 260 and facts["tokens"] == 258 and facts["end_token_ids"] == [256]
    loaded = load_model(tmp_path / "m", torch.float32)
    (answer,) = next(
        generate(loaded, [Prompt(0, [1, 2, 3] * 6, 0)], Generation(decoding_strategy="greedy", max_new_tokens=5), [], 0)
    )
    assert len(answer.token_ids) == 5 and max(answer.token_ids) < 258, "rows that are padding are never written"


@pytest.mark.parametrize(
    ("amx", "avx512", "trains"), [(True, True, "bfloat16"), (False, True, "float32"), (False, False, "float32")]
)
def test_auto_is_bfloat16_where_the_cpu_is_faster_with_it(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512: bool, trains: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert compute_dtype("auto") is getattr(torch, trains)
    assert compute_dtype("auto", training=False) is (torch.bfloat16 if amx or avx512 else torch.float32)
    assert compute_dtype("float32", training=False) is torch.float32


def test_weights_are_identified_by_their_whole_content(tmp_path: Path) -> None:
    """Embedding and final norm, a file's ends, are often those of the model that was tuned; nothing but the middle differs."""
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    with weights.open("wb") as handle:
        handle.truncate(70 << 20)
    before = weight_hash(tmp_path)
    with weights.open("r+b") as handle:
        handle.seek(35 << 20)
        handle.write(b"1")
    assert weight_hash(tmp_path) != before
