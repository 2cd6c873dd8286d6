"""Shapes of OLMo 2 models (OLMo team 2025, arXiv 2501.00656, table 1 and the published config.json files).

No torch here: the plan and the memory estimate read shapes, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Shape:
    """What decides the size of a decoder; names as in config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int = 100_352
    max_position_embeddings: int = 4096
    head_dim: int | None = None  # where it is not hidden_size / num_attention_heads
    tie_word_embeddings: bool = False

    @property
    def query_size(self) -> int:
        """Width of the query projection of one layer."""
        return (self.head_dim or self.hidden_size // self.num_attention_heads) * self.num_attention_heads

    @property
    def key_value_size(self) -> int:
        """Width of the key (and of the value) projection of one layer."""
        return self.query_size // self.num_attention_heads * self.num_key_value_heads

    def layer_parameters(self) -> int:
        """Query, key, value and output projections, gated MLP, norms of query, key and both blocks' outputs."""
        d, q, kv = self.hidden_size, self.query_size, self.key_value_size
        return 2 * d * q + 2 * d * kv + 3 * d * self.intermediate_size + (q + kv) + 2 * d

    def adapter_parameters(self, rank: int, targets: Iterable[str]) -> int:
        """Parameters of low-rank adapters of these linear layers in all decoder layers (Hu et al. 2021, 4.1)."""
        d, q, kv, f = self.hidden_size, self.query_size, self.key_value_size, self.intermediate_size
        widths = {"q_proj": d + q, "k_proj": d + kv, "v_proj": d + kv, "o_proj": d + q}
        widths |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), d + f)
        return rank * self.num_hidden_layers * sum(widths.get(name, 0) for name in targets)

    def parameters(self) -> int:
        """All parameters: embedding, layers, final norm, head."""
        tables = 1 if self.tie_word_embeddings else 2
        return tables * self.vocab_size * self.hidden_size + self.num_hidden_layers * self.layer_parameters() + self.hidden_size


SHAPES = {
    "olmo2-10m": Shape(96, 384, 4, 4, 4, vocab_size=49_280),
    "olmo2-1b": Shape(2048, 8192, 16, 16, 16),
    "olmo2-7b": Shape(4096, 11_008, 32, 32, 32),
    "olmo2-13b": Shape(5120, 13_824, 40, 40, 40),
    "olmo2-32b": Shape(5120, 27_648, 64, 40, 8),
}
COMMON = {
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_theta": 500_000.0, "rope_type": "default"},
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "hidden_act": "silu",
}
_PUBLISHED = re.compile(r"(?i)(?:^|/)olmo-2-\d{4}-(\d+)b(?:-|$)")


def resized(name: str, changes: dict[str, Any]) -> Shape:
    """A known shape with some sizes changed. Raises ValueError when heads do not divide, naming the numbers."""
    shape = replace(SHAPES[name], **changes)
    if shape.hidden_size % shape.num_attention_heads or shape.hidden_size // shape.num_attention_heads % 2:
        raise ValueError(
            f"hidden_size = {shape.hidden_size} over num_attention_heads = {shape.num_attention_heads} is no even number "
            "of channels per head"
        )
    if shape.num_attention_heads % shape.num_key_value_heads:
        raise ValueError(
            f"num_attention_heads = {shape.num_attention_heads} is no multiple of num_key_value_heads = "
            f"{shape.num_key_value_heads}"
        )
    return shape


def config_values(shape: Shape) -> dict[str, Any]:
    """Values of the config.json of an OLMo 2 model with this shape."""
    return {**{key: value for key, value in asdict(shape).items() if value is not None}, **COMMON}


def published_shape(name: str) -> Shape | None:
    """Shape of a published OLMo 2 model by its hub id or folder name, such as allenai/OLMo-2-1124-7B-SFT; else None."""
    found = _PUBLISHED.search(name.rstrip("/"))
    return SHAPES.get(f"olmo2-{found[1]}b") if found else None
