"""Publishing: whole or not at all, and never over what is not ours."""

import json
from pathlib import Path

import pytest

from workflow_scripts.artefact import ArtefactError, check_destination, open_artefact, publish


def build(folder: Path, text: str = "x") -> Path:
    folder.mkdir(parents=True)
    (folder / "data.txt").write_text(text)
    return folder


def test_publish_replaces_its_own_older_artefact(tmp_path: Path) -> None:
    manifest = tmp_path / "a" / "manifest.json"
    publish(build(tmp_path / "b1", "old"), manifest, "thing", {"n": 1})
    publish(build(tmp_path / "b2", "new"), manifest, "thing", {"n": 2})
    folder, facts = open_artefact(manifest, "thing")
    assert (folder / "data.txt").read_text() == "new" and facts["n"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_equal_content_gives_an_equal_manifest(tmp_path: Path) -> None:
    manifest = tmp_path / "a" / "manifest.json"
    publish(build(tmp_path / "b1"), manifest, "thing", {})
    first = manifest.read_bytes()
    publish(build(tmp_path / "b2"), manifest, "thing", {})
    assert manifest.read_bytes() == first


def test_a_folder_of_the_users_is_never_replaced(tmp_path: Path) -> None:
    bulk, manifest = tmp_path / "mine", tmp_path / "a" / "manifest.json"
    bulk.mkdir()
    check_destination(bulk, "thing")
    (bulk / "thesis.tex").write_text("years of work")
    for folder in (bulk, bulk / "thesis.tex"):
        with pytest.raises(ArtefactError, match="exists and is no thing made here, so it is not replaced: move it away"):
            publish(build(tmp_path / f"b{folder.name}"), manifest, "thing", {}, folder)
    assert (bulk / "thesis.tex").read_text() == "years of work"
    assert not manifest.exists()


def test_a_bulk_folder_of_ours_is_replaced_and_pointed_to(tmp_path: Path) -> None:
    bulk, manifest = tmp_path / "scratch" / "cache", tmp_path / "a" / "manifest.json"
    publish(build(tmp_path / "scratch" / "b1", "1"), manifest, "thing", {}, bulk)
    publish(build(tmp_path / "scratch" / "b2", "2"), manifest, "thing", {}, bulk)
    folder, _ = open_artefact(manifest, "thing")
    assert folder == bulk and (bulk / "data.txt").read_text() == "2"
    assert json.loads((bulk / "manifest.json").read_text())["published_by"] == str(manifest)
    with pytest.raises(ArtefactError, match="is no other made here"):
        check_destination(bulk, "other")


def test_a_failed_rename_puts_the_old_artefact_back(tmp_path: Path, monkeypatch) -> None:
    manifest = tmp_path / "a" / "manifest.json"
    publish(build(tmp_path / "b1", "old"), manifest, "thing", {})
    new = build(tmp_path / "b2", "new")
    real = Path.rename

    def failing(self, target):
        if self == new:
            raise OSError(18, "Invalid cross-device link")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="cross-device"):
        publish(new, manifest, "thing", {})
    assert (open_artefact(manifest, "thing")[0] / "data.txt").read_text() == "old"


def test_a_missing_file_of_an_artefact_is_named(tmp_path: Path) -> None:
    manifest = tmp_path / "a" / "manifest.json"
    publish(build(tmp_path / "b"), manifest, "thing", {})
    (manifest.parent / "data.txt").unlink()
    with pytest.raises(ArtefactError, match="data.txt is missing or damaged: delete .*manifest.json and run again"):
        open_artefact(manifest, "thing")
    with pytest.raises(ArtefactError, match="expected artefact/1 of kind 'other', found artefact/1 of kind 'thing'"):
        open_artefact(manifest, "other")
