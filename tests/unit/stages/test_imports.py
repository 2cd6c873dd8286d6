"""A stage imports what it needs: most of a short stage's time is its start."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import REPOSITORY

WITHOUT_TORCH = [
    "check_tokenizers",
    "comparison",
    "export",
    "merge_answers",
    "merge_logits",
    "merge_pairs",
    "merge_rollouts",
    "prerun",
    "wandb_summary",
]
CODE = """
import importlib, sys
for stage in {light}:
    importlib.import_module("workflow_scripts.stages." + stage)
    assert "torch" not in sys.modules, stage + " imports torch"
import workflow_scripts.stages.student_train
assert "trl" not in sys.modules, "TRL is for DPO alone"
"""


def test_no_stage_imports_torch_or_trl_without_need() -> None:
    command = [sys.executable, "-c", CODE.format(light=WITHOUT_TORCH)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
