"""Random-weight OLMo 2 models of real or toy size, rows like chat data, and what a pass over them costs in FLOPs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Olmo2Config, Olmo2ForCausalLM, PreTrainedTokenizerFast

PAD, EOS = 0, 1


@dataclass(frozen=True)
class Shape:
    """Sizes of an OLMo 2 decoder with untied embeddings."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int


@dataclass(frozen=True)
class Scale:
    """One size of the whole run. `least_s`: each window repeats its work for at least so long [s]."""

    teacher: Shape
    student: Shape
    dtype: str
    rows: int
    mean_length: int
    longest: int
    batch: int
    train_batch: int
    steps: int
    prompts: int
    new_tokens: int
    one_by_one: int
    loss_positions: int
    least_s: float


# allenai/OLMo-2-1124-7B and allenai/OLMo-2-0425-1B, by their config.json
OLMO2_7B = Shape(4096, 11008, 32, 32, 100_352)
OLMO2_1B = Shape(2048, 8192, 16, 16, 100_352)
SCALES = {
    "real": Scale(OLMO2_7B, OLMO2_1B, "bfloat16", 128, 420, 1024, 16, 8, 14, 64, 128, 3, 8192, 4.0),
    "toy": Scale(Shape(96, 192, 3, 4, 2048), Shape(64, 128, 2, 4, 2048), "float32", 16, 40, 96, 4, 4, 4, 8, 8, 2, 512, 0.3),
}


def build(shape: Shape, dtype: torch.dtype) -> Any:
    """A model with random weights, made on the accelerator where there is one."""
    config = Olmo2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            return Olmo2ForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def tokenizer() -> Any:
    """A tokenizer of two tokens: trainers ask for one, the rows are tokens already."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = Tokenizer(WordLevel({"<pad>": PAD, "<eos>": EOS}, unk_token="<eos>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<eos>")


def chat_rows(scale: Scale, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of random tokens whose lengths are spread as chat data's are (log-normal, cut); the last three fifths carry loss."""
    generator = random.Random(seed)
    rows = []
    for number in range(scale.rows):
        length = min(scale.longest, max(12, round(generator.lognormvariate(0.0, 0.7) * scale.mean_length / 1.28)))
        prompt = 2 * length // 5
        ids = [generator.randrange(2, scale.student.vocabulary) for _ in range(length)]
        rows.append({"example_id": number, "input_ids": ids, "loss_mask": [0] * prompt + [1] * (length - prompt)})
    return rows


def forward_flops(shape: Shape, lengths: Sequence[int], predicted: int) -> float:
    """FLOPs of a forward pass: 2 per weight and token, 2 per head weight and predicted token, causal attention.

    Attention: 4 T D per token and layer for scores and values, half of it by causality. Padding and recomputation are no useful
    work and are not counted.
    """
    weights = shape.layers * (4 * shape.hidden**2 + 3 * shape.hidden * shape.intermediate)
    attention = sum(2 * shape.layers * shape.hidden * length**2 for length in lengths)
    return 2.0 * weights * sum(lengths) + 2.0 * shape.hidden * shape.vocabulary * predicted + attention
