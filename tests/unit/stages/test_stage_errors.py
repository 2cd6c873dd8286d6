"""What a stage says when it cannot go on: one line with the system's reason and the folders, or its own traceback."""

import errno
import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel
from safetensors import SafetensorError

from workflow_scripts.progress import Progress
from workflow_scripts.stages.runtime.common import Arguments, run_stage


class Nothing(BaseModel):
    """No settings."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], str]:
    """Runs a stage that raises; returns the words that it ends with."""
    monkeypatch.setenv("STAGE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr("sys.argv", ["stage", "--settings", "{}", "--out", str(tmp_path / "out" / "manifest.json")])
    monkeypatch.setattr("signal.signal", lambda *arguments: None)

    def run(error: Exception) -> str:
        def stage(arguments: Arguments) -> None:
            raise error

        with pytest.raises(SystemExit) as ended:
            run_stage(stage, [])
        return str(ended.value)

    return run


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_library_that_could_not_write_is_explained_although_there_is_space_again(
    run: Callable[[Exception], str], tmp_path: Path, code: int
) -> None:
    """safetensors deletes what it could not write in full, and its error is no OSError."""
    reason = os.strerror(code)
    said = run(SafetensorError(f"Error while serializing: I/O error: {reason} (os error {code})"))
    assert said.startswith(
        f"error: {reason}: while writing to {tmp_path / 'out'} or to {tmp_path / 'state'} (SafetensorError: "
    )


def test_another_error_keeps_its_traceback(run: Callable[[Exception], str]) -> None:
    with pytest.raises(SafetensorError, match="header too large"):
        run(SafetensorError("header too large"))


def test_progress_that_cannot_be_written_leaves_nothing_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STAGE_PROGRESS", str(tmp_path / "progress.json"))

    def full(path: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "replace", full)
    Progress("loss", 10).write()
    assert "progress not written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_stage_that_is_done_does_not_search_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that was imported that took a second: collections at the end of Python look at no frozen object."""
    monkeypatch.setenv("STAGE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr("sys.argv", ["stage", "--settings", "{}", "--out", str(tmp_path / "out" / "manifest.json")])
    monkeypatch.setattr("signal.signal", lambda *arguments: None)
    gc.unfreeze()
    run_stage(lambda arguments: None, [])
    assert gc.get_freeze_count() > 0 and len(gc.get_objects(generation=2)) < 1000
    gc.unfreeze()
