"""A corpus: split by content, tokenised with labels on the assistant's tokens only, written in shuffled order."""

from __future__ import annotations

import glob
import hashlib
import random
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workflow_scripts.distill.rows import CorpusError, Messages, RowFault
from workflow_scripts.distill.seeds import prompt_seed
from workflow_scripts.distill.templates import render

_IN_MEMORY = 20_000  # rows that are put in order at once
_FLUSH = 500
_NO_LIMIT = 1 << 40
_TURN = ("role", "content")
SIDES = ("chosen", "rejected")


def tokenise_all(tokenizer: Any, conversations: Sequence[Messages], max_length: int) -> list[dict[str, Any] | RowFault]:
    """Tokens of each conversation, or why the chat template refuses it.

    A row has `input_ids` (int32), `loss_mask` (int8, 1 on tokens of assistant turns) and `truncated`.
    """
    rendered = [render(tokenizer, messages) for messages in conversations]
    texts = [found[0] for found in rendered if not isinstance(found, RowFault)]
    encodings = iter(tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False))
    return [found if isinstance(found, RowFault) else _tokens(next(encodings), found[1], max_length) for found in rendered]


def _tokens(encoding: Any, spans: list[tuple[int, int]], max_length: int) -> dict[str, Any]:
    """Tokens of a rendered text; those that overlap one of the character `spans` carry loss."""
    ids = np.array(encoding.ids, dtype=np.int32)
    mask = np.zeros(len(ids), dtype=np.int8)
    for begin, end in spans:
        inside = (token for at in range(begin, end) if (token := encoding.char_to_token(at)) is not None)
        first = next(inside, None)
        last = next((token for at in range(end - 1, begin - 1, -1) if (token := encoding.char_to_token(at)) is not None), None)
        if first is not None and last is not None:
            mask[first : last + 1] = 1
    return {"input_ids": ids[:max_length], "loss_mask": mask[:max_length], "truncated": len(ids) > max_length}


def tokenise_answer(tokenizer: Any, prompt: Messages, answer: str, truncated: bool) -> tuple[list[int], list[int]] | None:
    """Prompt and completion of an answer that another tokenizer's model wrote; None where the chat template refuses them.

    The completion ends with the end token unless the answer was `truncated`.
    """
    (row,) = tokenise_all(tokenizer, [[*prompt, {"role": "assistant", "content": answer}]], _NO_LIMIT)
    if isinstance(row, RowFault):
        return None
    marked = np.flatnonzero(row["loss_mask"])
    end = int(marked[-1]) + 1
    begin = end - int(np.argmin(row["loss_mask"][:end][::-1]))
    ids = row["input_ids"].tolist()
    return ids[:begin], ids[begin : end - truncated]


def tokenise_pair(tokenizer: Any, row: dict[str, Any]) -> dict[str, Any] | None:
    """Token ids and counts of a preference pair with another tokenizer; None where its chat template refuses the pair."""
    sides = [tokenise_answer(tokenizer, row["prompt"], row[side][0]["content"], row[f"{side}_truncated"]) for side in SIDES]
    if sides[0] is None or sides[1] is None:
        return None
    (prompt, chosen), (_, rejected) = sides[0], sides[1]
    ids = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
    return ids | {"chosen_tokens": len(chosen), "rejected_tokens": len(rejected)}


def loss_tokens(row: dict[str, Any]) -> int:
    """Tokens of a row that carry loss; the first token of a row is never predicted."""
    return int(np.count_nonzero(row["loss_mask"][1:]))


def prompt_of(messages: Messages) -> Messages | None:
    """The conversation up to and including its last user turn, or None when there is no user turn."""
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    return messages[: users[-1] + 1] if users else None


def questions(folder: Path, split_name: str, limit: int) -> dict[int, Messages]:
    """Up to `limit` conversations of one split of a tokenised corpus, by example id, each cut after its last user turn.

    Raises CorpusError when none has a user turn.
    """
    rows = conversations(folder / f"{split_name}.parquet")
    found = dict(islice(((example, prompt) for example, turns in rows if (prompt := prompt_of(turns))), limit))
    if not found:
        raise CorpusError(
            f"data: no row of the {split_name} split has a user turn to answer: choose another corpus or pipeline"
        )
    return found


def drawn(folder: Path, facts: dict[str, Any], seed: int, count: int) -> dict[int, Messages]:
    """`count` of the `questions` of the training split of these manifest facts, chosen by the seed."""
    found = questions(folder, "train", facts["splits"]["train"]["examples"])
    chosen = sorted(found, key=lambda example: prompt_seed(seed, example))[:count]
    return {example: found[example] for example in sorted(chosen)}


def keys(messages: Messages) -> tuple[int, int]:
    """64-bit hashes of the first prompt (white space apart) and of the whole conversation.

    Two conversations that have any prompt in common have the first one in common.
    """
    users = [number for number, message in enumerate(messages) if message["role"] == "user"]
    prompt = messages[: users[0] + 1] if users else messages
    return (
        _hash("\0".join(f"{m['role']}\0{' '.join(m['content'].split())}" for m in prompt)),
        _hash("\0".join(f"{m['role']}\0{m['content']}" for m in messages)),
    )


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def split(prompts: Sequence[int], train: int, evaluation: int, seed: int) -> tuple[list[int], list[int], int]:
    """Seeded split of rows by the hashes of their prompts: up to `train` rows, `evaluation` held-out rows, rows left out.

    Held-out rows have different prompts, and no training row has one of them: such rows are left out. Raises CorpusError when
    rows are too few.
    """
    order = list(range(len(prompts)))
    random.Random(seed).shuffle(order)
    held_out: list[int] = []
    seen: set[int] = set()
    for number in order:
        if len(held_out) == evaluation:
            break
        if prompts[number] not in seen:
            seen.add(prompts[number])
            held_out.append(number)
    chosen = set(held_out)
    rest = [number for number in order if number not in chosen]
    training = [number for number in rest if prompts[number] not in seen]
    if len(held_out) < evaluation or not training:
        raise CorpusError(
            f"data.evaluation_examples = {evaluation}, but the corpus has {len(set(prompts))} different prompts in "
            f"{len(prompts)} usable rows: none is left to train on"
        )
    return training[:train], held_out, len(rest) - len(training)


def _lists(parts: Sequence[Any], values: Any) -> Any:
    """A column of lists, from the lists and their items one after the other."""
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *map(len, parts)]), pa.int32()), values)


class ShuffledTable:
    """A Parquet file written in another order than its rows come in, with few rows in memory. Equal rows give equal bytes."""

    SCHEMA = pa.schema(
        {
            "position": pa.int64(),
            "example_id": pa.int64(),
            "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
            "input_ids": pa.list_(pa.int32()),
            "loss_mask": pa.list_(pa.int8()),
            "truncated": pa.bool_(),
        }
    )

    def __init__(self, path: Path, rows: int) -> None:
        self._path = path
        self._buffers: list[list[dict[str, Any]]] = [[] for _ in range(max(1, -(-rows // _IN_MEMORY)))]
        self._folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=".rows")
        self._writers: dict[int, Any] = {}

    def add(self, position: int, row: dict[str, Any]) -> None:
        """Take the row that stands at `position`; positions may have gaps."""
        bucket = position // _IN_MEMORY
        self._buffers[bucket].append({"position": position, **row})
        if len(self._buffers[bucket]) == _FLUSH:
            self._flush(bucket)

    def _flush(self, bucket: int) -> None:
        rows, self._buffers[bucket] = self._buffers[bucket], []
        turns = [message for row in rows for message in row["messages"]]
        said = pa.StructArray.from_arrays([pa.array([turn[key] for turn in turns], pa.string()) for key in _TURN], list(_TURN))
        tokens = {
            key: pa.array(np.concatenate([np.asarray(row[key], kind) for row in rows] or [np.empty(0, kind)]))
            for key, kind in (("input_ids", np.int32), ("loss_mask", np.int8))
        }
        columns = {
            "messages": _lists([row["messages"] for row in rows], said),
            **{key: _lists([row[key] for row in rows], values) for key, values in tokens.items()},
        }
        plain = {key: [row[key] for row in rows] for key in ("position", "example_id", "truncated")}
        batch = pa.RecordBatch.from_arrays(
            [columns[f.name] if f.name in columns else pa.array(plain[f.name], f.type) for f in self.SCHEMA], schema=self.SCHEMA
        )
        if bucket not in self._writers:
            self._writers[bucket] = pa.ipc.new_file(self._file(bucket), self.SCHEMA)
        self._writers[bucket].write_batch(batch)

    def _file(self, bucket: int) -> str:
        return str(Path(self._folder.name, f"{bucket}.arrow"))

    def close(self) -> None:
        """Write the file in order."""
        with pq.ParquetWriter(self._path, self.SCHEMA.remove(0), compression="zstd") as writer:
            for bucket in range(len(self._buffers)):
                self._flush(bucket)
                self._writers.pop(bucket).close()
                with pa.ipc.open_file(self._file(bucket)) as file:
                    table = file.read_all().sort_by("position").drop_columns(["position"]).combine_chunks()
                if table.num_rows:
                    writer.write_table(table)
                Path(self._file(bucket)).unlink()
        self._folder.cleanup()


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as a Parquet file; equal rows give equal bytes."""
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")


def read_table(path: Path) -> list[dict[str, Any]]:
    """Rows of a Parquet file."""
    with path.open("rb") as handle:  # a path is a path: no pattern, no address of a store
        rows: list[dict[str, Any]] = pq.read_table(handle).to_pylist()
    return rows


def conversations(path: Path) -> Iterator[tuple[int, Messages]]:
    """Example id and turns of the rows of a tokenised corpus, in a stream."""
    with path.open("rb") as handle, pq.ParquetFile(handle) as file:
        for batch in file.iter_batches(batch_size=_FLUSH, columns=["example_id", "messages"]):
            yield from ((row["example_id"], row["messages"]) for row in batch.to_pylist())


def read_dataset(path: Path, cache: Path) -> Any:
    """A Parquet file as a `datasets.Dataset`, cached in the folder `cache`; `datasets` takes a path for a pattern."""
    from datasets import Dataset

    return Dataset.from_parquet(glob.escape(str(path)), cache_dir=str(cache))
