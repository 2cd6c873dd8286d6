"""Who writes the answers: `generate` of transformers in batches, or vLLM as an optional extra. Both take prompts as tokens.

A backend keeps one seed per prompt. transformers' own continuous batching (`generate_batch`, looked at in 5.23) cannot: it
samples all requests of a step with one `torch.multinomial` from the process's generator, seeded once, so that an answer depends
on what else is in flight, and its processors get numbers per request (temperature, top_k, top_p) but no state. It is not used.

vLLM keeps a generator per request for `SamplingParams.seed`, so random numbers belong to the prompt here, too; logits still
change in their last bits with the requests computed together, unless VLLM_BATCH_INVARIANT=1 is set on hardware that has it. Its
answers are another backend's: the choice is part of the settings that a data set depends on.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from workflow_scripts.distill.generation import Answer, GenerationError, Prompt, generate
from workflow_scripts.distill.models import load_frozen, load_tokenizer, vocabulary_size
from workflow_scripts.settings.optional import missing_backend
from workflow_scripts.settings.schema import Generation

Backend = Callable[[Sequence[Prompt]], Iterator[list[Answer]]]

_BANNED = -100.0  # added to a logit: the lowest bias that vLLM takes
_ALONE, _BESIDE_OTHERS = 0.9, 0.5  # share of the accelerator's memory that vLLM takes


def check_backend(options: Generation, key: str) -> None:
    """Raise GenerationError when the chosen backend is not installed here; to be called before anything expensive."""
    if reason := missing_backend(f"{key}.backend", options.backend):
        raise GenerationError(reason)


def chosen(options: Generation) -> str:
    """The backend that writes here: `auto` is vLLM on a GPU where it is installed."""
    if options.backend != "auto":
        return options.backend
    return "vllm" if torch.cuda.is_available() and importlib.util.find_spec("vllm") is not None else "transformers"


def open_backend(
    options: Generation,
    folder: Path,
    dtype: torch.dtype,
    attn_implementation: str,
    longest_prompt: int,
    end_ids: Sequence[int],
    pad_id: int,
    loaded: Any = None,
) -> Backend:
    """Load the model of `folder` to write with, but for one that is `loaded` already, as it scores afterwards.

    `longest_prompt` [tokens] is that of all prompts, of all parts.
    """
    name = chosen(options)
    print(f"{name} writes", flush=True)
    if name == "vllm":
        memory = _ALONE if loaded is None else _BESIDE_OTHERS
        return VllmBackend(options, folder, dtype, longest_prompt + options.max_new_tokens, end_ids, memory)
    model = load_frozen(folder, dtype, attn_implementation) if loaded is None else loaded
    return lambda prompts: generate(model, prompts, options, end_ids, pad_id)


def padding_rows(folder: Path) -> range:
    """Rows of a model's vocabulary beyond its tokenizer's, which stand for no token."""
    return range(vocabulary_size(load_tokenizer(folder)), AutoConfig.from_pretrained(folder, local_files_only=True).vocab_size)


class VllmBackend:
    """vLLM's offline engine (`vllm.LLM`) in this process. It does the batching: `batch_size` is the unit of resumption only."""

    def __init__(
        self, options: Generation, folder: Path, dtype: torch.dtype, max_model_len: int, end_ids: Sequence[int], memory: float
    ) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # one process: signals arrive, scheduling is repeatable
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        import vllm

        self._params = vllm.SamplingParams
        self._options, self._end_ids = options, list(end_ids)
        self._bias = dict.fromkeys(padding_rows(folder), _BANNED) or None
        self.engine = vllm.LLM(
            model=str(folder),
            dtype=str(dtype).removeprefix("torch."),
            max_model_len=max_model_len,
            gpu_memory_utilization=memory,
            skip_tokenizer_init=True,
            generation_config="vllm",  # nothing of the model's own generation_config.json leaks in
            seed=options.seed,
        )

    def __call__(self, prompts: Sequence[Prompt]) -> Iterator[list[Answer]]:
        """Answer all prompts at once."""
        outputs = self.engine.generate(
            [{"prompt_token_ids": prompt.input_ids} for prompt in prompts],
            [self._sampling(prompt) for prompt in prompts],
            use_tqdm=False,
        )
        yield [self._answer(prompt, output.outputs[0]) for prompt, output in zip(prompts, outputs, strict=True)]

    def _sampling(self, prompt: Prompt) -> Any:
        greedy = self._options.decoding_strategy == "greedy"
        return self._params(
            n=1,
            temperature=0.0 if greedy else self._options.temperature,
            top_p=1.0 if greedy else self._options.top_p,
            max_tokens=self._options.max_new_tokens,
            stop_token_ids=self._end_ids,
            seed=prompt.seed,
            logit_bias=self._bias,
            detokenize=False,
        )

    def _answer(self, prompt: Prompt, completion: Any) -> Answer:
        """The end token is among vLLM's tokens when it ended the answer; it counts as generated, as everywhere."""
        tokens = list(completion.token_ids)
        return (
            Answer(prompt.key, tokens[:-1], tokens[-1])
            if tokens and tokens[-1] in self._end_ids
            else Answer(prompt.key, tokens, None)
        )
