"""Model folders with random weights in the shape of published OLMo 2 models, written shard by shard.

For machines where weights cannot be had: speed, memory and energy of a forward or training step depend on the shape, not on
the values. Quality means nothing, and everything that comes from such a model says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from workflow_scripts.distill.models import ModelError, vocabulary_size
from workflow_scripts.settings.shapes import Shape, config_values

SHARD_BYTES = 2 << 30


def write_random_model(
    destination: Path, shape: Shape, tokenizer: Any, dtype: torch.dtype, seed: int, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write config, weights and tokenizer of a random OLMo 2 model; never more than one shard is in memory.

    The same shape, seed and type give the same tensors, whatever `shard_bytes` is. Raises ModelError when the tokenizer has
    more tokens than the model has embedding rows.
    """
    from transformers import Olmo2Config, Olmo2ForCausalLM

    if (tokens := vocabulary_size(tokenizer)) > shape.vocab_size:
        raise ModelError(
            f"vocab_size = {shape.vocab_size}, but the tokenizer has {tokens} tokens: set vocab_size to at least that"
        )
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = Olmo2Config(**config_values(shape), **special, architectures=["Olmo2ForCausalLM"])
    config.dtype = dtype
    with torch.device("meta"):
        empty = Olmo2ForCausalLM(config)
    shards = list(_in_shards(empty, dtype.itemsize, shard_bytes))
    where: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: _tensor(name, empty.get_parameter(name), config.initializer_range, dtype, seed) for name in names}
        save_file(tensors, destination / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": empty.num_parameters() * dtype.itemsize}, "weight_map": where}
    (destination / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    config.save_pretrained(destination)
    tokenizer.save_pretrained(destination)
    (destination / "README.md").write_text(
        f"---\nlibrary_name: transformers\ntags: [random-weights]\n---\n\n# Random weights\n\n{empty.num_parameters():,} "
        f"random parameters (seed {seed}) in the shape of an OLMo 2 model. It has learnt nothing: "
        "good for measuring speed, memory and energy, but its quality means nothing.\n",
        encoding="utf-8",
    )


def _in_shards(model: Any, itemsize: int, shard_bytes: int) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, parameter in model.named_parameters():
        if names and size + parameter.numel() * itemsize > shard_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += parameter.numel() * itemsize
    yield names


def _tensor(name: str, empty: torch.Tensor, spread: float, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """One tensor, from the seed and its own name: gains of norms are 1, all else is normal with deviation `spread`."""
    if empty.dim() == 1:
        return torch.ones(empty.shape, dtype=dtype)
    own = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7])
    return torch.empty(empty.shape, dtype=dtype).normal_(0.0, spread, generator=torch.Generator().manual_seed(own))
