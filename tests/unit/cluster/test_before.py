"""Before the first job: when the machine is warmed up, and that the load ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

from workflow_scripts.cluster.before import WARM_UP, begins_cold


@pytest.mark.parametrize(
    ("rules", "cold"),
    [
        ({"student_train", "evaluation", "comparison"}, True),
        ({"cache_logits", "merge_logits"}, True),
        ({"evaluation"}, True),
        ({"prerun", "student_train"}, False),
        ({"experiment_summary", "comparison", "export_model"}, False),
        (set(), False),
    ],
)
def test_a_machine_that_has_rested_is_warmed_up_before_work_that_is_compared(rules: set[str], cold: bool) -> None:
    assert begins_cold(rules) is cold


def test_the_load_ends() -> None:
    assert subprocess.run([sys.executable, "-c", WARM_UP % 0.01], check=False, timeout=120).returncode == 0
