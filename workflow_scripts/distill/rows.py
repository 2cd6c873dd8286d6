"""Rows of chat data as people have them: files in, each row with its place; a row in, its conversation or why it has none.

Files are read in a stream: JSON lines or a JSON list (also with gzip), Parquet, a folder of such shards, or what `datasets` has
saved or loaded.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from workflow_scripts.artefact import files_under
from workflow_scripts.errors import UserError

Messages = list[dict[str, str]]
SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
}
NOT_RENDERED = "a role that the chat template does not render"
_BLOCK = 1 << 20
_BATCH = 500
_BETWEEN = re.compile(r"[\s,]*")
_SPLIT = re.compile(r"(train|training|test|validation|valid|val|dev|eval)(?![A-Za-z])")
_BOM = b"\xef\xbb\xbf"


class CorpusError(UserError):
    """A corpus that cannot be trained on; names the row and the remedy."""


class RowFault(Exception):
    """Why one row cannot be used: a reason to count by, and what was found in this row."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Row:
    """One row as it was found: a line not parsed yet, or a value. `place` is `file, line n` or `file, row n`."""

    place: str
    raw: Any

    def value(self) -> Any:
        """The row's value. Raises RowFault when the line is no JSON."""
        if not isinstance(self.raw, bytes):
            return self.raw
        try:
            return json.loads(self.raw.decode("utf-8").rstrip())
        except UnicodeDecodeError:
            raise RowFault("not UTF-8") from None
        except json.JSONDecodeError as error:
            raise RowFault("not valid JSON", f"{error.msg} at column {error.colno}") from None
        except (ValueError, RecursionError) as error:
            raise RowFault("not valid JSON", str(error)) from None


# ---- files


def read_rows(paths: Sequence[Path], split: str = "train") -> Iterator[Row]:
    """Rows of files and folders in their order; of a folder with shards of several splits, those of `split`.

    Raises CorpusError when something is not there, has no known suffix, or is damaged.
    """
    for path in paths:
        if path.is_dir() and ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file()):
            yield from _saved(path)
            continue
        for file in shards(path, split):
            name = str(file.relative_to(path.parent))
            try:
                if file.suffix == ".parquet":
                    yield from _parquet(file, name)
                else:
                    yield from _json(file, name)
            except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
                raise CorpusError(f"data: {file} is damaged or not what its name says: {error}") from None


def shards(path: Path, split: str) -> list[Path]:
    """The files of rows at a path. Raises CorpusError when there is none."""
    if not path.exists():
        raise CorpusError(f"data: {path} does not exist")
    if path.is_file():
        if not _known(path):
            raise CorpusError(f"data: {path} is none of {', '.join(SUFFIXES)} (.json and .jsonl also with .gz): convert it")
        return [path]
    found = [file for file in files_under(path) if _known(file) and not file.name.startswith((".", "_"))]
    of_splits = [file for file in found if _SPLIT.match(file.name)]
    if of_splits:
        found = [file for file in of_splits if (match := _SPLIT.match(file.name)) and match[1] == split]
    if not found:
        what = f"shards of dataset_split = {split!r}" if of_splits else f"file {' or '.join(SUFFIXES)}"
        raise CorpusError(f"data: the folder {path} has no {what}: correct the path or the split")
    return found


def _known(path: Path) -> bool:
    name = path.name.removesuffix(".gz") if not path.name.endswith(".parquet.gz") else ""
    return name.endswith(SUFFIXES)


def table_rows(dataset: Any, name: str) -> Iterator[Row]:
    """Rows of a `datasets.Dataset`."""
    number = 0
    for batch in dataset.iter(batch_size=_BATCH):
        columns = list(batch)
        for values in zip(*batch.values(), strict=True):
            number += 1
            yield Row(f"{name}, row {number}", dict(zip(columns, values, strict=True)))


def _saved(path: Path) -> Iterator[Row]:
    from datasets import Dataset, load_from_disk

    dataset = load_from_disk(str(path))
    if not isinstance(dataset, Dataset):
        raise CorpusError(f"data: {path} holds several splits ({', '.join(dataset)}): name the folder of one split")
    return table_rows(dataset, path.name)


def _parquet(path: Path, name: str) -> Iterator[Row]:
    number = 0
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=_BATCH):
            for value in batch.to_pylist():
                number += 1
                yield Row(f"{name}, row {number}", value)


def _json(path: Path, name: str) -> Iterator[Row]:
    """Rows of JSON lines, which end at a line feed only, or of one JSON list."""
    with _binary(path) as handle:
        start = next((text for line in handle if (text := line.removeprefix(_BOM).lstrip())), b"")
    with _binary(path) as handle:
        if start.startswith(b"["):
            yield from _list(io.TextIOWrapper(handle, "utf-8-sig", errors="surrogateescape", newline=""), path, name)
            return
        for number, line in enumerate(handle, start=1):
            text = line.removeprefix(_BOM) if number == 1 else line
            if text.strip():
                yield Row(f"{name}, line {number}", text)


def _binary(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path) if path.suffix == ".gz" else path.open("rb"))


def _list(handle: io.TextIOWrapper, path: Path, name: str) -> Iterator[Row]:
    """Items of a JSON list, a block at a time. Raises CorpusError with the line where the list is no JSON."""
    decoder = json.JSONDecoder()
    text, position, line = handle.read(_BLOCK), 0, 1
    position = text.index("[") + 1
    line += text.count("\n", 0, position)
    while True:
        match = cast(re.Match[str], _BETWEEN.match(text, position))
        line += text.count("\n", position, match.end())
        position = match.end()
        if position < len(text):
            if text[position] == "]":
                return
            try:
                value, end = decoder.raw_decode(text, position)
            except RecursionError:
                raise CorpusError(f"data: {path}, line {line}: JSON nested too deeply: remove the row") from None
            except json.JSONDecodeError as error:
                fault = f"{error.msg} at line {line + text.count(chr(10), position, error.pos)}"
            else:
                yield Row(f"{name}, line {line}", value)
                line += text.count("\n", position, end)
                position = end
                continue
        else:
            fault = "the list does not end"
        more = handle.read(max(_BLOCK, len(text) - position))
        if not more:
            raise CorpusError(f"data: {path} is not valid JSON: {fault}")
        text, position = text[position:] + more, 0


# ---- rows


def conversation(
    row: Any,
    style: str = "auto",
    placeholders: Mapping[str, str] | None = None,
    roles: Iterable[str] = ("system", "user", "assistant"),
) -> Messages:
    """The turns of one row as {role, content}, placeholders filled.

    `style` is one of STYLES, or `auto`: the first whose field the row has. `roles` are those that the chat template renders.
    Raises RowFault when the row cannot be trained on.
    """
    if not isinstance(row, dict):
        raise RowFault("no object with fields", type(row).__name__)
    found = (name for name, (fields, _) in STYLES.items() if _first(row, fields) is not None)
    chosen = style if style != "auto" else next(found, None)
    if chosen is None or _first(row, STYLES[chosen][0]) is None:
        wanted = [chosen] if chosen else STYLES
        raise RowFault(
            "none of the fields " + ", ".join("/".join(STYLES[name][0]) for name in wanted), ", ".join(map(str, row))[:80]
        )
    messages = [_turn(turn) for turn in STYLES[chosen][1](row)]
    for message in messages:
        if message["role"] not in roles:
            raise RowFault(NOT_RENDERED, message["role"])
        for key, value in (placeholders or {}).items():
            message["content"] = message["content"].replace("{{" + key + "}}", value)
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    if not answers:
        raise RowFault("no assistant turn")
    if not any(map(str.strip, answers)):
        raise RowFault("empty answers only")
    return messages


def _first(row: Mapping[str, Any], fields: tuple[str, ...]) -> Any:
    return next((row[field] for field in fields if row.get(field) is not None), None)


def _turns(found: Any) -> list[Any]:
    """Turns of a list, of its JSON text, or of a mapping of columns, as some Parquet files have them."""
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError:
            raise RowFault("no list of turns", "text") from None
    if isinstance(found, dict) and found and all(isinstance(column, list) for column in found.values()):
        found = [dict(zip(found, values, strict=False)) for values in zip(*found.values(), strict=False)]
    if not isinstance(found, list) or not found:
        raise RowFault("no list of turns", type(found).__name__)
    return found


def _turn(turn: Any) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise RowFault("no list of turns", f"a turn is {type(turn).__name__}")
    said = turn["role"] if turn.get("role") is not None else turn.get("from")
    role = ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise RowFault("an unknown role", repr(said))
    return {"role": role, "content": _text(turn["content"] if "content" in turn else turn.get("value"), role)}


def _text(content: Any, role: str) -> str:
    """Text of a turn: itself, or its text parts joined."""
    if isinstance(content, str):
        try:
            content.encode()
        except UnicodeEncodeError:
            raise RowFault("no Unicode text (half a character)", f"in the {role} turn") from None
        return content
    if content is None:
        raise RowFault("a turn without text", f"of {role}")
    if isinstance(content, list):
        parts = [part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None for part in content]
        kinds = {part.get("type", "text") for part in content if isinstance(part, dict)} - {"text"}
        if parts and not kinds and all(isinstance(part, str) for part in parts):
            return _text("".join(cast(list[str], parts)), role)
        raise RowFault("a part that is no text", ", ".join(sorted(map(str, kinds))) or f"of {role}")
    raise RowFault("a turn without text", f"{type(content).__name__} of {role}")


def _prompt_rows(row: Mapping[str, Any]) -> list[Any]:
    """Turns of prompt and completion (or response, or the chosen answer of a pair), each text or a list of turns."""
    answer, prompt = _first(row, _ANSWERS), row.get("prompt")
    answers = [{"role": "assistant", "content": answer}] if isinstance(answer, str) or answer is None else _turns(answer)
    if prompt is None and isinstance(answer, str):
        raise RowFault("an answer without a prompt")
    if prompt is None or (not isinstance(answer, str) and answers[0].get("role") in ("user", "system")):
        return answers
    return [*([{"role": "user", "content": prompt}] if isinstance(prompt, str) else _turns(prompt)), *answers]


def _instruction_rows(row: Mapping[str, Any]) -> list[Any]:
    question = row["instruction"]
    if isinstance(question, str) and isinstance(row.get("input"), str) and row["input"]:
        question += f"\n\n{row['input']}"
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    return [*system, {"role": "user", "content": question}, {"role": "assistant", "content": row.get("output")}]


_ANSWERS = ("completion", "response", "chosen")
STYLES: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], list[Any]]]] = {
    "messages": (("messages",), lambda row: _turns(row["messages"])),
    "conversations": (
        ("conversations", "conversation"),
        lambda row: _turns(_first(row, ("conversations", "conversation"))),
    ),
    "prompt": (_ANSWERS, _prompt_rows),
    "instruction": (("instruction",), _instruction_rows),
}


class Faults:
    """Rows that cannot be used, counted by reason, with the first place of each."""

    def __init__(self) -> None:
        self.by_reason: dict[str, dict[str, Any]] = {}

    def add(self, place: str, fault: RowFault) -> None:
        """Count one row."""
        first = f"{place}: {fault.detail}" if fault.detail else place
        self.by_reason.setdefault(fault.reason, {"rows": 0, "first": first})["rows"] += 1

    @property
    def rows(self) -> int:
        """All of them."""
        return sum(entry["rows"] for entry in self.by_reason.values())

    def sentence(self, rows: int) -> str:
        """What cannot be used, in words."""
        reasons = [f"{reason}: {entry['rows']} (first: {entry['first']})" for reason, entry in self.by_reason.items()]
        return f"{self.rows} of {rows} rows of the corpus cannot be used: {'; '.join(reasons)}"

    def check(self, rows: int, most: float) -> None:
        """Raise CorpusError when none of the `rows` is left or more than the share `most` is dropped."""
        if not rows:
            raise CorpusError("data: the corpus is empty")
        if self.rows == rows or self.rows > most * rows:
            raise CorpusError(f"data: {self.sentence(rows)}: correct them, or raise data.max_dropped_share = {most:g}")
