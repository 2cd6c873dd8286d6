"""The quick part of the fault campaign (`make faults` is the whole): one fault of each kind in the session's tiny run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.faults.campaign import Outcome, Trial, run_trial, say
from benchmarks.faults.faults import faults
from benchmarks.faults.run import TARGETS, Base
from tests.conftest import Workflow
from tests.integration.test_kills import Host

QUICK = {  # mostly on merges: the other stages begin with seconds of imports
    "truncated unit": ("rank_pairs", 0.8),
    "SIGKILL of both": ("merge_logits", 0.7),
    "SIGKILL of the driver": ("merge_answers", 0.5),
    "disk full under the output": ("merge_pairs", 0.3),
    "read-only results": ("merge_answers", 0.5),
    "late output": ("merge_logits", 0.5),
    "SIGTERM of the meter": ("preprocess", 0.7),
}


@pytest.fixture(scope="module")
def outcomes(tiny_run: Workflow, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """All of them, two at a time."""
    folder = tmp_path_factory.mktemp("faults")
    host = Host(folder / "power")
    base = Base(tiny_run, cores="2")
    by_name = {fault.name: fault for fault in faults()}
    trials = [
        Trial(number, by_name[name], TARGETS[target], fraction, seed=number)
        for number, (name, (target, fraction)) in enumerate(QUICK.items())
    ]
    try:
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda trial: run_trial(trial, base, folder, host, whole=False), trials))
    finally:
        host.stop()
    for outcome in found:
        say(outcome, len(found))
    return {outcome.trial.fault.name: outcome for outcome in found}


@pytest.mark.parametrize("name", QUICK)
def test_nothing_is_lost(outcomes: dict[str, Outcome], name: str) -> None:
    outcome = outcomes[name]
    if not outcome.injected:
        pytest.skip(f"not injected: {outcome.notes}")
    assert outcome.problems == []
    assert not outcome.unclear, outcome.notes
