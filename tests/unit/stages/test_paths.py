"""Paths are paths: brackets, blanks and stars are no patterns, and symbolic links are followed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from workflow_scripts.distill import corpus
from workflow_scripts.distill.rows import read_rows
from workflow_scripts.plan.names import files_at, task_files
from workflow_scripts.settings.evaluation import Evaluation
from workflow_scripts.stages.runtime.tracking import link_checkpoints

ODD = "res [1] {a} *é"


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STAGE_STATE_DIR", str(tmp_path / ODD / "state"))
    (tmp_path / ODD).mkdir()
    return tmp_path / ODD


def test_pairs_are_read_from_an_odd_path_and_nowhere_else(odd: Path) -> None:
    corpus.write_table(odd / "train.parquet", [{"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4]}])
    (odd.parent / "res 1 {a} é").mkdir()
    corpus.write_table(
        odd.parent / "res 1 {a} é" / "train.parquet", [{"prompt_ids": [9], "chosen_ids": [9], "rejected_ids": [9]}]
    )
    assert corpus.read_dataset(odd / "train.parquet", odd / "cache").to_list() == [
        {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4]}
    ]
    assert corpus.read_table(odd / "train.parquet")[0]["chosen_ids"] == [3]


def test_the_link_to_the_checkpoints_holds_where_the_output_lies_behind_a_symbolic_link(odd: Path) -> None:
    real = odd.parent / "elsewhere" / "deep" / "folder"
    real.mkdir(parents=True)
    (odd / "runs").symlink_to(real)
    checkpoints = link_checkpoints(odd / "runs" / "experiment" / "final_model" / "manifest.json")
    (checkpoints / "checkpoint-1").mkdir()
    link = odd / "runs" / "experiment" / "checkpoints"
    assert link.is_symlink() and (link / "checkpoint-1").is_dir() and not link.readlink().is_absolute()


def test_shards_behind_links_are_found_once_by_the_stage_and_by_the_plan(odd: Path) -> None:
    (odd.parent / "real").mkdir()
    (odd.parent / "real" / "b.jsonl").write_text('{"n": 2}\n')
    (odd / "a.jsonl").write_text('{"n": 1}\n')
    (odd / "more").symlink_to(odd.parent / "real")
    (odd.parent / "real" / "back").symlink_to(odd)
    assert [row.value()["n"] for row in read_rows([odd])] == [1, 2]
    assert files_at(str(odd)) == [str(odd / "a.jsonl"), str(odd / "more" / "b.jsonl")]


def test_byte_code_that_an_evaluation_leaves_beside_its_tasks_is_none_of_its_inputs(tmp_path: Path) -> None:
    settings = SimpleNamespace(evaluation=Evaluation(lm_eval_tasks=["t"], lm_eval_include_path=str(tmp_path)))
    for name in ("t.yaml", "utils.py", "__pycache__/utils.cpython-311.pyc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [Path(file).name for file in task_files(settings)] == ["t.yaml", "utils.py"]
