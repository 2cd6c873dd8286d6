"""Batches without padding: the rows of a batch one after the other in one sequence, with attention inside each row only.

transformers knows such a sequence by position ids that restart: `eager` and `sdpa` get a block-diagonal causal mask from them
(when no attention mask is given), `flash_attention_2` the bounds of the rows. A mask makes `sdpa` compute the products between
rows as well, only to discard them, so for it each row is attended on its own here, without a mask (`rowwise_sdpa`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, AutoConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from workflow_scripts.distill.batching import Batch
from workflow_scripts.distill.models import ModelError

ROWWISE = "rowwise_sdpa"


def pack_rows(rows: Sequence[dict[str, Any]]) -> tuple[Batch, torch.Tensor, list[int]]:
    """Rows of `input_ids` and `loss_mask` as one sequence of S tokens, S the sum of their lengths.

    Returns the batch ([1, S] each; no token is padding, the last token of a row predicts nothing), position ids [1, S] that
    restart with every row, and the rows' lengths.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    input_ids = torch.tensor([[token for row in rows for token in row["input_ids"]]])
    predicts = torch.tensor([[bool(keep) for row in rows for keep in [*row["loss_mask"][1:], 0]]])
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return Batch(input_ids, torch.ones_like(input_ids), predicts), positions, lengths


def attention_for(choice: str, packing: bool, model: Path) -> str:
    """The attention kernel [a name that transformers knows] of a model folder for `model.attn_implementation` = `choice`.

    Packed rows under `sdpa` take `rowwise_sdpa`, unless some layers attend to a sliding window, which only masks express.
    Raises ModelError for packed rows where layers carry a state from one row into the next.
    """
    config = AutoConfig.from_pretrained(model, local_files_only=True)
    kinds = getattr(config, "layer_types", None)
    if packing and (others := set(kinds or ()) - {"full_attention", "sliding_attention", "chunked_attention"}):
        raise ModelError(f"{model}: layers of {', '.join(sorted(others))} mix packed rows: set training.packing to false")
    windowed = any(k != "full_attention" for k in kinds) if kinds else bool(getattr(config, "sliding_window", None))
    return ROWWISE if packing and choice == "sdpa" and not windowed else choice


@torch.compiler.disable
def rowwise_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    row_lengths: Sequence[int] | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of each row on its own: query, key, value [1, heads, S, D] -> [1, S, heads, D].

    Raises ValueError without `row_lengths`: the rows of a padded batch would see their padding.
    """
    if row_lengths is None:
        raise ValueError(f"attention {ROWWISE} is for packed rows and needs row_lengths")
    lengths = list(row_lengths)
    parts = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    return torch.cat([sdpa_attention_forward(module, q, k, v, None, **options)[0] for q, k, v in parts], dim=1), None


AttentionInterface.register(ROWWISE, rowwise_attention)
