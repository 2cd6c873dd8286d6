"""Chat rows: read, check, split, tokenise with labels on the assistant's tokens only."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workflow_scripts.errors import UserError

Messages = list[dict[str, str]]


class CorpusError(UserError):
    """A corpus that cannot be trained on; names the row and the remedy."""


def read_rows(path: Path) -> Sequence[dict[str, Any]]:
    """Rows of a .json (list), .jsonl or .parquet file, or of a `datasets` folder made by save_to_disk."""
    if not path.exists():
        raise CorpusError(f"data: {path} does not exist")
    if path.is_dir():
        from datasets import Dataset, load_from_disk

        dataset = load_from_disk(str(path))
        if not isinstance(dataset, Dataset):
            raise CorpusError(f"data: {path} holds several splits ({', '.join(dataset)}): name the folder of one split")
        rows_on_disk: Sequence[dict[str, Any]] = dataset
        return rows_on_disk
    if path.suffix == ".parquet":
        return read_table(path)
    text = path.read_text(encoding="utf-8")
    try:
        rows = [json.loads(line) for line in text.splitlines() if line.strip()] if path.suffix == ".jsonl" else json.loads(text)
    except json.JSONDecodeError as error:
        raise CorpusError(f"data: {path} is not valid {path.suffix}: {error}") from None
    if not isinstance(rows, list):
        raise CorpusError(f"data: {path} must hold a list of rows, not {type(rows).__name__}")
    return rows


def as_messages(row: dict[str, Any], style: str, number: int, placeholders: dict[str, str]) -> Messages:
    """Chat messages of one row, placeholders filled.

    Raises CorpusError when the row has no assistant turn, an unknown role, or fields of the wrong type.
    """
    if style == "instruction":
        missing = [key for key in ("instruction", "output") if not isinstance(row.get(key), str)]
        if missing:
            raise CorpusError(f"data: row {number} has no text in {', '.join(missing)} (format: instruction)")
        question = row["instruction"] + (f"\n\n{row['input']}" if row.get("input") else "")
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]
    else:
        found = row.get("messages")
        if not isinstance(found, list) or not all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in found):
            raise CorpusError(f"data: row {number} has no `messages` list of {{role, content}} (format: messages)")
        messages = [{"role": m.get("role"), "content": m["content"]} for m in found]
    for message in messages:
        if message["role"] not in ("system", "user", "assistant"):
            raise CorpusError(f"data: row {number} has the role {message['role']!r}; known: system, user, assistant")
        for key, value in placeholders.items():
            message["content"] = message["content"].replace("{{" + key + "}}", value)
    if not any(m["role"] == "assistant" for m in messages):
        raise CorpusError(f"data: row {number} has no assistant turn, so nothing to learn: remove it from the corpus")
    return messages


def tokenise(tokenizer: Any, messages: Messages, max_length: int) -> dict[str, Any]:
    """Tokens of one conversation: `input_ids`, `loss_mask` (1 on tokens of assistant turns), `truncated`."""
    encoded = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = encoded["input_ids"], encoded["assistant_masks"]
    return {
        "input_ids": ids[:max_length],
        "loss_mask": mask[:max_length],
        "truncated": len(ids) > max_length,
    }


def loss_tokens(row: dict[str, Any]) -> int:
    """Tokens of a row that carry loss; the first token of a row is never predicted."""
    return int(sum(row["loss_mask"][1:]))


def prompt_of(messages: Messages) -> Messages | None:
    """The conversation up to and including its last user turn, or None when there is no user turn."""
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    return messages[: users[-1] + 1] if users else None


def questions(folder: Path, split_name: str, limit: int) -> dict[int, Messages]:
    """Up to `limit` conversations of one split of a tokenised corpus, by example id, each cut after its last user turn."""
    rows = read_table(folder / f"{split_name}.parquet")
    found = [(row["example_id"], prompt) for row in rows if (prompt := prompt_of(row["messages"]))]
    return dict(found[:limit])


def split(rows: Sequence[Any], train: int, evaluation: int, seed: int) -> tuple[list[Any], list[Any]]:
    """Seeded split: `evaluation` held-out rows, then up to `train` rows. Raises CorpusError when rows are too few."""
    if not rows:
        raise CorpusError("data: the corpus is empty")
    if len(rows) <= evaluation:
        raise CorpusError(
            f"data.evaluation_examples = {evaluation}, but the corpus has {len(rows)} usable rows: none is left to train on"
        )
    order = list(rows)
    random.Random(seed).shuffle(order)
    return order[evaluation : evaluation + train], order[:evaluation]


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as a Parquet file; equal rows give equal bytes."""
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")


def read_table(path: Path) -> list[dict[str, Any]]:
    """Rows of a Parquet file."""
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows
