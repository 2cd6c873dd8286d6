"""Tulu-style rows through the stage: only the chosen rows are read, and the source's format does not matter."""

from __future__ import annotations

import json
import random

import pytest
from datasets import Dataset

from tests.helpers.partial import partial
from tests.unit.distill.test_olmo2_template import tokenizer  # noqa: F401
from workflow_scripts.artefact import read_json, write_json
from workflow_scripts.distill.corpus import CorpusError, questions, read_table
from workflow_scripts.stages.preprocess import preprocess
from workflow_scripts.stages.runtime.common import Arguments

ROWS = [
    {
        "id": f"tulu-{i}",
        "messages": [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": f"Answer {i}."}],
        "source": "test",
    }
    for i in range(40)
]


def corpus_of(folder, path, rows: int = 10) -> dict:
    data = {"dataset_choice": "rows", "datasets": {"rows": {"dataset_path": str(path)}}, "max_sequence_length": 64}
    settings = partial(
        data={**data, "train_examples": rows, "evaluation_examples": 4, "seed": 0, "max_dropped_share": 0.05},
        model={"chat_template": "olmo2"},
    )
    out = folder / f"corpus-{path.name}-{rows}" / "manifest.json"
    preprocess(Arguments(settings, {"teacher": folder / "teacher.json"}, out, {"download_dir": ""}))
    return read_json(out)


@pytest.fixture
def folder(tmp_path, tokenizer, monkeypatch):  # noqa: F811
    tokenizer.save_pretrained(tmp_path / "teacher")
    facts = {"schema": "artefact/1", "kind": "model", "name": "t", "path": "teacher", "max_position_embeddings": 4096}
    facts |= {"end_token_ids": [tokenizer.eos_token_id]}
    write_json(tmp_path / "teacher.json", facts | {"tokenizer_sha256": "t"})
    monkeypatch.delenv("STAGE_STATE_DIR", raising=False)
    return tmp_path


def test_a_folder_of_save_to_disk_gives_the_corpus_of_its_lines(folder) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    Dataset.from_list(ROWS).save_to_disk(str(folder / "rows"))
    lines, saved = corpus_of(folder, folder / "rows.jsonl"), corpus_of(folder, folder / "rows")
    assert lines["corpus_sha256"] == saved["corpus_sha256"] and lines["splits"] == saved["splits"]
    order = list(range(40))
    random.Random(0).shuffle(order)
    train = read_table(folder / "corpus-rows-10" / "train.parquet")
    assert [row["example_id"] for row in train] == order[4:14]
    assert [row["messages"] for row in train] == [ROWS[i]["messages"] for i in order[4:14]]
    assert sum(train[0]["loss_mask"]) == len(f"Answer {order[4]}.") + 1, "one token per byte, and the end token"


ODD = {
    "no_json": '{"messages": [{"role"',
    "no_turn": json.dumps({"messages": [{"role": "system", "content": "be nice"}]}),
    "half": json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Nice \ud83d day"}]}),
    "null": json.dumps(
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": []}]}
    ),
    "image": json.dumps(
        {"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "a"}]}
    ),
    "robot": json.dumps({"messages": [{"role": "robot", "content": "q"}, {"role": "assistant", "content": "a"}]}),
}
READ = [
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Part?"}]}, {"role": "assistant", "content": "Yes."}]},
    {"conversations": [{"from": "human", "value": "From?"}, {"from": "gpt", "value": "To."}]},
    {"prompt": "Prompt?", "completion": "Completion."},
    {"instruction": "Do", "output": "Done"},
]


def test_rows_of_every_odd_kind_among_good_ones_are_read_or_counted_with_their_place(folder, capsys, monkeypatch) -> None:
    monkeypatch.setenv("STAGE_PROGRESS", str(folder / "progress.json"))
    good = [
        {"messages": [{"role": "user", "content": f"Q{i}?"}, {"role": "assistant", "content": f"A{i}."}]} for i in range(200)
    ]
    lines = [json.dumps(row) for row in good]
    for number, text in enumerate(ODD.values()):
        lines.insert(10 * number, text)
    lines += [json.dumps(row) for row in READ]
    (folder / "odd.jsonl").write_text("\ufeff" + "\r\n".join(lines) + "\n")
    made = corpus_of(folder, folder / "odd.jsonl", rows=1000)
    assert made["rows"] == 210 and made["splits"]["train"]["examples"] == 200
    assert {reason: entry["rows"] for reason, entry in made["dropped"].items()} == dict.fromkeys(made["dropped"], 1)
    assert len(made["dropped"]) == len(ODD)
    assert made["dropped"]["no assistant turn"]["first"] == "odd.jsonl, line 11"
    assert made["dropped"]["an unknown role"]["first"] == "odd.jsonl, line 51: 'robot'"
    told = read_json(folder / "progress.json")
    assert told["warnings"] == [
        line.removeprefix("warning: ") for line in capsys.readouterr().out.splitlines() if "warning" in line
    ]
    assert told["metrics"]["dropped"] == made["dropped"]
    read = [row["messages"][0]["content"] for row in read_table(folder / "corpus-odd.jsonl-1000" / "train.parquet")]
    held = [row["messages"][0]["content"] for row in read_table(folder / "corpus-odd.jsonl-1000" / "evaluation.parquet")]
    assert {"Part?", "From?", "Prompt?", "Do"} <= {*read, *held}


def test_more_bad_rows_than_the_share_are_refused(folder) -> None:
    (folder / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS) + '{"x": 1}\n' * 3)
    with pytest.raises(
        CorpusError, match=r"3 of 43 rows .*first: bad.jsonl, line 41: x\): correct them, or raise data.max_dropped"
    ):
        corpus_of(folder, folder / "bad.jsonl")


def test_held_out_prompts_are_not_in_training_and_duplicates_are_counted(folder) -> None:
    twice = [json.dumps(row) for row in ROWS for _ in range(2)]
    (folder / "twice.jsonl").write_text("\n".join(twice))
    made = corpus_of(folder, folder / "twice.jsonl", rows=100)
    assert (made["duplicates"], made["left_out_as_prompts_are_held_out"]) == (40, 4)
    prompts = [
        {row["messages"][0]["content"] for row in read_table(folder / "corpus-twice.jsonl-100" / f"{name}.parquet")}
        for name in ("train", "evaluation")
    ]
    assert len(prompts[0]) == 36 and len(prompts[1]) == 4 and not prompts[0] & prompts[1]


def test_a_corpus_without_user_turns_has_no_questions(folder) -> None:
    rows = [{"messages": [{"role": "assistant", "content": f"Plain text {i}."}]} for i in range(12)]
    (folder / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = corpus_of(folder, folder / "plain.jsonl", rows=8)
    assert made["splits"]["train"]["examples"] == 8, "the baseline can learn from it"
    with pytest.raises(CorpusError, match="no row of the train split has a user turn to answer"):
        questions(folder / "corpus-plain.jsonl-8", "train", 5)


def test_a_template_that_ends_turns_with_a_token_that_the_model_does_not_state_is_said(folder, capsys) -> None:
    facts = read_json(folder / "teacher.json")
    write_json(folder / "teacher.json", facts | {"end_token_ids": [3]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    made = corpus_of(folder, folder / "rows.jsonl")
    assert made["end_token_id"] == facts["end_token_ids"][0]
    assert "ends a turn with <|endoftext|>, which t does not state as an end" in capsys.readouterr().out
