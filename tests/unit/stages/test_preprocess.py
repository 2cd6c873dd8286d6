"""Tulu-style rows through the stage: only the chosen rows are read, and the source's format does not matter."""

from __future__ import annotations

import json
import random

import pytest
from datasets import Dataset

from tests.helpers.partial import partial
from tests.unit.distill.test_olmo2_template import tokenizer  # noqa: F401
from workflow_scripts.artefact import read_json, write_json
from workflow_scripts.distill.corpus import CorpusError, read_table
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
        data={**data, "train_examples": rows, "evaluation_examples": 4, "seed": 0}, model={"chat_template": "olmo2"}
    )
    out = folder / f"corpus-{path.name}-{rows}" / "manifest.json"
    preprocess(Arguments(settings, {"teacher": folder / "teacher.json"}, out, {"download_dir": ""}))
    return read_json(out)


@pytest.fixture
def folder(tmp_path, tokenizer, monkeypatch):  # noqa: F811
    tokenizer.save_pretrained(tmp_path / "teacher")
    facts = {"schema": "artefact/1", "kind": "model", "path": "teacher", "max_position_embeddings": 4096}
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


def test_a_bad_row_stops_the_stage_only_where_it_is_chosen(folder) -> None:
    order = list(range(40))
    random.Random(0).shuffle(order)
    rows = list(ROWS)
    rows[order[30]] = {"messages": [{"role": "user", "content": "alone"}]}
    (folder / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert corpus_of(folder, folder / "bad.jsonl")["splits"]["train"]["examples"] == 10
    with pytest.raises(CorpusError, match=f"row {order[30]} has no assistant turn"):
        corpus_of(folder, folder / "bad.jsonl", rows=36)
