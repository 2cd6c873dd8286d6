"""Backends of generation: what vLLM is asked for (a fake module that records it), and what is refused before the work."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from workflow_scripts.distill import backends
from workflow_scripts.distill.backends import check_backend, open_backend
from workflow_scripts.distill.generation import Answer, GenerationError, Prompt, that_fit
from workflow_scripts.distill.seeds import prompt_seed
from workflow_scripts.settings.schema import Generation

PROMPTS = [Prompt(f"p{i}", [5, 6, 7 + i], prompt_seed(3, i)) for i in range(3)]
EOS, PAD = 2, 0


@dataclass
class Recorded:
    """What the fake engine was given, and what it is to answer: (tokens, finish_reason) per prompt."""

    answers: list[tuple[list[int], str]]
    made: dict[str, Any] = field(default_factory=dict)
    prompts: list[Any] = field(default_factory=list)
    sampling: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """A module named vllm with the part of its interface that is used."""
    recorded = Recorded([([9, 9, EOS], "stop"), ([9, 9, 9, 9], "length"), ([EOS], "stop")])

    class LLM:
        def __init__(self, **options: Any) -> None:
            recorded.made = options

        def generate(self, prompts: list[Any], sampling_params: list[Any], use_tqdm: bool) -> list[Any]:
            assert not use_tqdm
            recorded.prompts, recorded.sampling = prompts, sampling_params
            return [
                SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(tokens), finish_reason=reason)])
                for tokens, reason in recorded.answers
            ]

    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, dict  # type: ignore[attr-defined]
    module.__spec__ = importlib.util.spec_from_loader("vllm", loader=None)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(backends, "padding_rows", lambda folder: range(98, 100))
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
    return recorded


def options(**changes: Any) -> Generation:
    return Generation(**({"backend": "vllm", "max_new_tokens": 4, "temperature": 0.7, "top_p": 0.9, "seed": 3} | changes))


def test_vllm_gets_tokens_and_a_seed_per_prompt_and_its_tokens_are_counted(vllm: Recorded) -> None:
    check_backend(options(), "synthetic_data.generation")
    write = open_backend(options(), Path("/models/teacher"), torch.bfloat16, "sdpa", 3, [EOS], PAD)
    (answers,) = list(write(PROMPTS))
    assert vllm.made == {
        "model": "/models/teacher",
        "dtype": "bfloat16",
        "max_model_len": 3 + 4,
        "gpu_memory_utilization": 0.9,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "seed": 3,
    }
    assert vllm.prompts == [{"prompt_token_ids": [5, 6, 7 + i]} for i in range(3)]
    assert [params.pop("seed") for params in vllm.sampling] == [prompt_seed(3, i) for i in range(3)]
    shared = {"n": 1, "temperature": 0.7, "top_p": 0.9, "max_tokens": 4, "stop_token_ids": [EOS], "detokenize": False}
    assert vllm.sampling == [shared | {"logit_bias": {98: -100.0, 99: -100.0}}] * 3, "padding rows are banned"
    assert answers == [
        Answer("p0", [9, 9], EOS),
        Answer("p1", [9, 9, 9, 9], None),
        Answer("p2", [], EOS),
    ]


def test_greedy_asks_vllm_for_temperature_zero(vllm: Recorded) -> None:
    write = open_backend(options(decoding_strategy="greedy"), Path("m"), torch.float32, "sdpa", 3, [EOS], PAD)
    list(write(PROMPTS))
    assert [(params["temperature"], params["top_p"]) for params in vllm.sampling] == [(0.0, 1.0)] * 3


def test_beside_a_judge_vllm_takes_half_of_the_memory(vllm: Recorded) -> None:
    open_backend(options(), Path("m"), torch.float32, "sdpa", 3, [EOS], PAD, loaded=object())
    assert vllm.made["gpu_memory_utilization"] == 0.5


def test_a_missing_vllm_is_said_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = r"dpo.generation.backend = vllm, but the package vllm is not installed in this environment: install it there"
    with pytest.raises(GenerationError, match=message):
        check_backend(options(), "dpo.generation")
    check_backend(options(backend="transformers"), "dpo.generation")


def test_transformers_writes_with_the_judge_when_there_is_one(toy_model) -> None:
    chosen = options(backend="transformers", decoding_strategy="greedy")
    write = open_backend(chosen, Path("/nowhere"), torch.float32, "sdpa", 3, [EOS], PAD, loaded=toy_model)
    answers = {answer.key: answer for batch in write(PROMPTS) for answer in batch}
    tokens = list(PROMPTS[1].input_ids)
    for _ in range(4):
        with torch.no_grad():
            tokens.append(int(toy_model(torch.tensor([tokens])).logits[0, -1].argmax()))
    expected = tokens[3:]
    assert answers["p1"].token_ids == (expected[: expected.index(EOS)] if EOS in expected else expected)


def test_prompts_longer_than_the_context_are_left_out_and_said_or_refused(capsys) -> None:
    teacher = {"name": "small", "max_position_embeddings": 10}
    rows = [[1] * 3, [1] * 6, [1] * 7]
    assert that_fit(rows, len, 4, teacher) == rows[:2]
    said = "1 of 3 prompts do not fit with max_new_tokens = 4 the context of small (10 tokens): they are left out\n"
    assert capsys.readouterr().out == said
    with pytest.raises(GenerationError, match=r"no prompt fits with max_new_tokens = 8 .* the shortest has 3 tokens: lower"):
        that_fit(rows, len, 8, teacher)
