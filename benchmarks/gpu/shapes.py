"""Random-weight OLMo 2 models of real or toy size, rows like chat data, and what a pass over them costs in FLOPs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Olmo2Config, Olmo2ForCausalLM, PreTrainedTokenizerFast

from workflow_scripts.settings.shapes import SHAPES, Shape, config_values, resized

PAD, EOS = 0, 1


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


TOY = {"vocab_size": 2048, "num_attention_heads": 4, "num_key_value_heads": 4}
TOY_TEACHER = resized("olmo2-10m", TOY | {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3})
TOY_STUDENT = resized("olmo2-10m", TOY | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2})
SCALES = {
    "real": Scale(SHAPES["olmo2-7b"], SHAPES["olmo2-1b"], "bfloat16", 128, 420, 1024, 16, 8, 14, 64, 128, 3, 8192, 4.0),
    "toy": Scale(TOY_TEACHER, TOY_STUDENT, "float32", 16, 40, 96, 4, 4, 4, 8, 8, 2, 512, 0.3),
}


def build(shape: Shape, dtype: torch.dtype) -> Any:
    """A model with random weights, made on the accelerator where there is one."""
    config = Olmo2Config(
        **config_values(shape), pad_token_id=PAD, bos_token_id=None, eos_token_id=EOS, attn_implementation="sdpa"
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
        ids = [generator.randrange(2, scale.student.vocab_size) for _ in range(length)]
        rows.append({"example_id": number, "input_ids": ids, "loss_mask": [0] * prompt + [1] * (length - prompt)})
    return rows


def forward_flops(shape: Shape, lengths: Sequence[int], predicted: int) -> float:
    """FLOPs of a forward pass: 2 per weight and token, 2 per head weight and predicted token, causal attention.

    Attention: 4 T D per token and layer for scores and values, half of it by causality. Padding and recomputation are no useful
    work and are not counted.
    """
    d = shape.hidden_size
    weights = shape.num_hidden_layers * (2 * d**2 + 2 * d * shape.key_value_size + 3 * d * shape.intermediate_size)
    attention = sum(2 * shape.num_hidden_layers * d * length**2 for length in lengths)
    return 2.0 * weights * sum(lengths) + 2.0 * d * shape.vocab_size * predicted + attention
