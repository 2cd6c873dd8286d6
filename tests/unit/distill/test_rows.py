"""Rows as people have them: every form of file and of row is read, or has a reason and a place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workflow_scripts.distill import rows
from workflow_scripts.distill.rows import CorpusError, Faults, RowFault, conversation, read_rows

USER, ASSISTANT = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Ho."}
CHAT = [USER, ASSISTANT]
GOOD = {"messages": CHAT}


def values(*paths: Path, split: str = "train") -> list[Any]:
    return [row.value() for row in read_rows(paths, split)]


def places(*paths: Path) -> list[str]:
    return [row.place for row in read_rows(paths)]


def lines(*content: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.ndjson", "d.json.gz", "d.jsonl.gz", "d.parquet", "json lines.json"])
def test_rows_of_every_kind_of_file(tmp_path: Path, name: str) -> None:
    content = [GOOD, {"messages": [USER, ASSISTANT, USER, ASSISTANT]}]
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(content), path)
    else:
        text = json.dumps(content, indent=1) if name.startswith("d.json.") or name == "d.json" else lines(*content)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    assert values(path) == content


def test_a_long_json_list_is_read_in_blocks_and_lines_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_BLOCK", 7)
    content = [{"messages": CHAT, "number": number} for number in range(20)]
    (tmp_path / "d.json").write_text(json.dumps(content, indent=1))
    assert values(tmp_path / "d.json") == content
    per_row = json.dumps(content[0], indent=1).count("\n") + 1
    assert places(tmp_path / "d.json")[3] == f"d.json, line {2 + 3 * per_row}"
    (tmp_path / "cut.json").write_text(json.dumps(content, indent=1)[:-40])
    with pytest.raises(CorpusError, match=r"cut.json is not valid JSON: .* at line 2\d\d"):
        values(tmp_path / "cut.json")


def test_a_byte_order_mark_windows_ends_and_a_line_separator_in_a_text(tmp_path: Path) -> None:
    odd = {"messages": [USER, {"role": "assistant", "content": "one\u2028two\u0085three"}]}
    text = lines(GOOD, odd, GOOD)
    for name, content in (
        ("bom.jsonl", b"\xef\xbb\xbf" + text.encode()),
        ("crlf.jsonl", text.replace("\n", "\r\n").encode()),
        ("u2028.jsonl", text.encode()),
        ("bom.json", b"\xef\xbb\xbf" + json.dumps([GOOD, odd, GOOD]).encode()),
        ("blank.jsonl", ("\n\n" + text).encode()),
    ):
        (tmp_path / name).write_bytes(content)
        assert values(tmp_path / name) == [GOOD, odd, GOOD], name
    assert places(tmp_path / "blank.jsonl")[0] == "blank.jsonl, line 3"


def test_a_bad_line_has_its_place_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(lines(GOOD).encode() + b'{"messages": [{"role"\n' + b"\xff\xfe\n" + lines(GOOD).encode())
    found = list(read_rows([path]))
    assert [found[0].value(), found[3].value()] == [GOOD, GOOD]
    for number, reason in ((1, "not valid JSON"), (2, "not UTF-8")):
        with pytest.raises(RowFault, match=reason):
            found[number].value()
        assert found[number].place == f"d.jsonl, line {number + 1}"
    with pytest.raises(RowFault) as caught:
        found[1].value()
    assert caught.value.detail == "Expecting ':' delimiter at column 22"


def test_a_folder_of_shards_in_order_without_the_other_splits(tmp_path: Path) -> None:
    folder = tmp_path / "data [1]"
    folder.mkdir()
    for name, number in (("train-00001-of-2", 1), ("train-00000-of-2", 0), ("test-00000-of-1", 9)):
        pq.write_table(pa.Table.from_pylist([{"messages": CHAT, "number": number}]), folder / f"{name}.parquet")
    (folder / "README.md").write_text("no data")
    assert [row["number"] for row in values(folder)] == [0, 1]
    assert [row["number"] for row in values(folder, split="test")] == [9]
    assert places(folder) == [f"data [1]/train-0000{n}-of-2.parquet, row 1" for n in (0, 1)]
    more = tmp_path / "more.jsonl"
    more.write_text(lines({"messages": CHAT, "number": 2}))
    assert [row["number"] for row in values(folder, more)] == [0, 1, 2]
    with pytest.raises(CorpusError, match="no shards of dataset_split = 'dev'"):
        values(folder, split="dev")


def test_what_is_not_there_not_known_or_damaged_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("x.parquet", "x.jsonl.gz", "x.csv"):
        (tmp_path / name).write_bytes(b"no such thing")
    for name, words in (
        ("absent.json", "does not exist"),
        ("empty", "has no file"),
        ("x.csv", "is none of .jsonl"),
        ("x.parquet", "x.parquet is damaged"),
        ("x.jsonl.gz", "x.jsonl.gz is damaged"),
    ):
        with pytest.raises(CorpusError, match=words):
            values(tmp_path / name)


SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (GOOD, CHAT),
        ({"messages": [{**USER, "name": None, "tool_calls": None}, ASSISTANT], "source": None}, CHAT),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i?"}]},
                    ASSISTANT,
                ]
            },
            CHAT,
        ),
        ({"messages": json.dumps(CHAT)}, CHAT),
        ({"messages": {"role": ["user", "assistant"], "content": ["Hi?", "Ho."]}}, CHAT),
        ({"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Ho."}]}, CHAT),
        ({"messages": None, "conversations": [{"from": "system", "value": "Be brief."}, *CHAT]}, [SYSTEM, *CHAT]),
        ({"prompt": "Hi?", "completion": "Ho."}, CHAT),
        ({"prompt": "Hi?", "response": "Ho."}, CHAT),
        ({"prompt": [SYSTEM, USER], "completion": [ASSISTANT]}, [SYSTEM, *CHAT]),
        ({"prompt": "Hi?", "chosen": CHAT, "rejected": [USER, {"role": "assistant", "content": "No."}]}, CHAT),
        ({"chosen": CHAT, "rejected": CHAT}, CHAT),
        ({"prompt": "Hi?", "chosen": "Ho.", "rejected": "No."}, CHAT),
        ({"instruction": "Hi?", "output": "Ho."}, CHAT),
        (
            {"instruction": "Hi", "input": "you?", "output": "Ho.", "system": "Be brief."},
            [SYSTEM, {**USER, "content": "Hi\n\nyou?"}, ASSISTANT],
        ),
        ({"messages": [{"role": "developer", "content": "Be brief."}, *CHAT]}, [SYSTEM, *CHAT]),
        ({"messages": [ASSISTANT]}, [ASSISTANT]),
    ],
)
def test_every_form_of_a_row_is_a_conversation(row: dict[str, Any], expected: list[dict[str, str]]) -> None:
    assert conversation(row) == expected


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ([1], "no object with fields", "list"),
        ({"text": "x"}, "none of the fields messages, ", "text"),
        ({"messages": []}, "no list of turns", "list"),
        ({"messages": "Hi?"}, "no list of turns", "text"),
        ({"messages": ["Hi?"]}, "no list of turns", "a turn is str"),
        ({"messages": [USER]}, "no assistant turn", ""),
        ({"messages": [SYSTEM]}, "no assistant turn", ""),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "empty answers only", ""),
        ({"messages": [USER, {"role": "robot", "content": "x"}]}, "an unknown role", "'robot'"),
        ({"messages": [USER, {"role": ["x"], "content": "x"}]}, "an unknown role", "['x']"),
        (
            {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{}]}, ASSISTANT]},
            "a turn without text",
            "of assistant",
        ),
        (
            {"messages": [USER, {"role": "tool", "content": "sunny"}, ASSISTANT]},
            "a role that the chat template does not render",
            "tool",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}, ASSISTANT]},
            "a part that is no text",
            "image",
        ),
        ({"messages": [USER, {"role": "assistant", "content": "Nice \ud83d day"}]}, "no Unicode text", "in the assistant turn"),
        ({"instruction": "Hi?", "output": None}, "a turn without text", "of assistant"),
        ({"response": "Ho."}, "an answer without a prompt", ""),
    ],
)
def test_a_row_that_cannot_be_used_has_a_reason(row: Any, reason: str, detail: str) -> None:
    with pytest.raises(RowFault, match=f"^{reason}") as caught:
        conversation(row)
    assert caught.value.detail == detail


def test_a_named_format_takes_no_other_and_placeholders_are_filled() -> None:
    row = {"prompt": "No", "completion": "no", "instruction": "Who?", "input": "Tell {{name}}.", "output": "I am {{name}}."}
    assert conversation(row, "instruction", {"name": "Ada"}) == [
        {"role": "user", "content": "Who?\n\nTell Ada."},
        {"role": "assistant", "content": "I am Ada."},
    ]
    with pytest.raises(RowFault, match="none of the fields conversations/conversation"):
        conversation(row, "conversations")


def test_a_tool_turn_is_kept_where_the_template_renders_it() -> None:
    turns = [USER, {"role": "tool", "content": "sunny"}, ASSISTANT]
    assert conversation({"messages": turns}, roles=("user", "assistant", "tool")) == turns


def test_faults_are_counted_by_reason_with_the_first_place_and_refused_beyond_the_share() -> None:
    faults = Faults()
    for place, fault in (
        ("a.jsonl, line 4", RowFault("x", "y")),
        ("a.jsonl, line 9", RowFault("x")),
        ("b, row 1", RowFault("z")),
    ):
        faults.add(place, fault)
    assert faults.by_reason == {"x": {"rows": 2, "first": "a.jsonl, line 4: y"}, "z": {"rows": 1, "first": "b, row 1"}}
    faults.check(60, 0.05)
    with pytest.raises(
        CorpusError, match=r"3 of 59 rows .* x: 2 \(first: a.jsonl, line 4: y\); z: 1 .*data.max_dropped_share = 0.05"
    ):
        faults.check(59, 0.05)
    with pytest.raises(CorpusError, match="3 of 3 rows"):
        faults.check(3, 1.0)
    with pytest.raises(CorpusError, match="the corpus is empty"):
        Faults().check(0, 1.0)
