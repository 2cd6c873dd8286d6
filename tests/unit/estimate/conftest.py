"""A working directory with models and a corpus, for all tests of estimates."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.forecasts import HERE, manifest
from workflow_scripts.estimate.history import Hardware


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a student of 1000 parameters and a corpus of 2 input tokens per loss token."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Hardware, "here", lambda: HERE)
    manifest("results/models/small/model", {"parameters": 1000, "source": "package"})
    manifest("results/models/large/model", {"parameters": 5000, "source": "package"})
    train = {"examples": 10, "loss_tokens": 400, "input_tokens": 800}
    held_out = {"examples": 4, "loss_tokens": 50, "input_tokens": 100}
    manifest("results/corpus/c/dataset", {"splits": {"train": train, "evaluation": held_out}})
    return tmp_path
