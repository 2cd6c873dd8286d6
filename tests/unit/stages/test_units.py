"""Units of split teacher stages: made once, found again, damaged ones made anew, merged without a copy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workflow_scripts.progress import STATE_VARIABLE, UNITS_VARIABLE, Progress, state_dir
from workflow_scripts.stages.runtime.common import Arguments, run_stage
from workflow_scripts.stages.runtime.units import Part, UnitError, Units, finish_part, unit_count


@pytest.fixture(autouse=True)
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STAGE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("STAGE_UNITS_DIR", str(tmp_path / "units"))
    return tmp_path / "units"


def make(units: Units, number: int, content: bytes = b"0123456789") -> None:
    path = units.data(f"shard-{number}")
    path.write_bytes(content)
    units.save(number, {"work": {"loss": 10 + number}}, path)


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_every_split_covers_every_unit_once(parts: int) -> None:
    taken = [number for n in range(1, parts + 1) for number in Part(n, parts).numbers(7)]
    assert sorted(taken) == list(range(7))


@pytest.mark.parametrize("text", ["0-of-2", "3-of-2", "1", "x-of-2"])
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UnitError, match=f"--part {text}: expected N-of-M"):
        Part.parse(text)


def test_more_parts_than_units_are_refused_by_the_settings_name() -> None:
    with pytest.raises(UnitError, match=r"scatter.logit_caching = 4, but the work has 3 unit\(s\) only: lower it to 3"):
        Units(3).todo(Part(1, 4), "scatter.logit_caching", Progress("loss"))


def test_finished_units_are_found_by_any_split_and_count_as_resumed() -> None:
    units = Units(4)
    make(units, 0)
    make(units, 2)
    progress = Progress("loss")
    assert list(units.todo(Part(1, 1), "s", progress)) == [1, 3]
    assert progress.resumed == {"steps": 0, "examples": 0, "loss": 22}
    assert list(units.todo(Part(1, 2), "s", Progress("loss"))) == []
    assert list(units.todo(Part(2, 2), "s", Progress("loss"))) == [1, 3]


@pytest.mark.parametrize("damage", ["cut data", "no data", "cut facts"])
def test_a_damaged_unit_is_named_and_made_again(pool: Path, damage: str, capsys) -> None:
    units = Units(2)
    make(units, 0)
    make(units, 1)
    if damage == "cut data":
        (pool / "shard-1").write_bytes(b"0123")
    elif damage == "no data":
        (pool / "shard-1").unlink()
    else:
        (pool / "unit-00001.json").write_text('{"work": {')
    assert list(units.todo(Part(1, 1), "s", Progress("loss"))) == [1]
    assert f"unit 1 is {'gone' if damage == 'no data' else 'damaged'}" in capsys.readouterr().out


def test_a_changed_byte_is_found_by_the_merge_and_the_parts_are_asked_for_again(tmp_path: Path, pool: Path) -> None:
    units = Units(1)
    make(units, 0)
    finish_part(tmp_path / "1-of-1.json", Part(1, 1), units)
    (pool / "shard-0").write_bytes(b"0123x56789")
    with pytest.raises(UnitError, match=r"unit\(s\) \[0\] of .* are missing or damaged: run again"):
        units.all([tmp_path / "1-of-1.json"], Progress("loss"))
    assert not (tmp_path / "1-of-1.json").exists()
    assert list(units.todo(Part(1, 1), "s", Progress("loss"))) == [0]


def test_merged_data_is_linked_and_found_where_it_went(tmp_path: Path, pool: Path) -> None:
    units = Units(2)
    make(units, 0)
    make(units, 1)
    inode = (pool / "shard-0").stat().st_ino
    artefact = tmp_path / "artefact"
    artefact.mkdir()
    progress = Progress("loss")
    for facts in units.all([], progress):
        units.link_into(facts["file"], artefact)
    units.merged_into(artefact)
    assert progress.tokens == {"loss": 21}
    assert (artefact / "shard-0").stat().st_ino == inode and not (pool / "shard-0").exists()
    assert list(Units(2).todo(Part(1, 1), "s", Progress("loss"))) == [], "nothing is made twice"
    (artefact / "shard-1").unlink()
    assert list(Units(2).todo(Part(1, 1), "s", Progress("loss"))) == [1], "a deleted artefact is"


def test_parts_that_disagree_are_refused(tmp_path: Path) -> None:
    finish_part(tmp_path / "1-of-2.json", Part(1, 2), Units(4))
    finish_part(tmp_path / "2-of-2.json", Part(2, 2), Units(5))
    assert json.loads((tmp_path / "1-of-2.json").read_text())["part"] == "1-of-2"
    with pytest.raises(UnitError, match=r"the parts disagree on the number of units: \[4, 5\]"):
        unit_count([tmp_path / "1-of-2.json", tmp_path / "2-of-2.json"])


def test_stages_by_hand_have_one_state_folder_and_a_merge_finds_the_units(tmp_path: Path, monkeypatch, capsys) -> None:
    for name in (STATE_VARIABLE, UNITS_VARIABLE):
        monkeypatch.delenv(name)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "tmp"))
    monkeypatch.setattr("signal.signal", lambda *arguments: None)
    (tmp_path / "corpus.json").write_text("{}")
    parts = [str(tmp_path / f"{number}-of-2.json") for number in (1, 2)]

    def call(stage, *arguments: str, settings: str = "{}") -> Path:
        with monkeypatch.context() as patch:
            for name in (STATE_VARIABLE, UNITS_VARIABLE):  # what the call sets is gone after it, as with a process
                patch.setenv(name, "")
                patch.delenv(name)
            corpus = ["--corpus", str(tmp_path / "corpus.json")]
            patch.setattr("sys.argv", ["stage", "--settings", settings, *corpus, *arguments])
            run_stage(stage, ["corpus"], ["part"])
            return state_dir()

    def make_part(args: Arguments) -> None:
        part = Part.parse(args.extra["part"])
        units = Units(2)
        make(units, part.number - 1)
        finish_part(args.out, part, units)

    def merge(args: Arguments) -> None:
        assert len(Units(unit_count(args.parts)).all(args.parts, Progress("loss"))) == 2

    folders = [call(make_part, "--part", f"{number}-of-2", "--out", parts[number - 1]) for number in (1, 2)]
    assert folders[0] == folders[1] and folders[0].is_relative_to(tmp_path / "tmp")
    call(merge, "--parts", *parts, "--out", str(tmp_path / "merged.json"), settings='{"pipeline": "kd"}')
    (tmp_path / "corpus.json").write_text("[]")
    assert call(make_part, "--part", "1-of-2", "--out", parts[0]) not in folders, "another corpus, another state"
