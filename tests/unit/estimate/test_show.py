"""The plan as a person reads it: reasons in a few words, ranges in two digits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from workflow_scripts.estimate import show
from workflow_scripts.estimate.forecast import Estimate
from workflow_scripts.plan.dry_run import PlannedJob, short_reason

CHANGED = "Params have changed since last execution: Union of exclusive params before and now across all output: {} "


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (CHANGED.format("before: 'training.beta=0.5' now: 'training.beta=0.1'"), "training.beta: 0.5 -> 0.1"),
        (CHANGED.format("""before: 'a.b="x, y"','c=1' now: 'a.b="z"'"""), 'a.b: "x, y" -> "z", c: 1 -> -'),
        (
            CHANGED.format("before: 'code=0123' now: 'code=4567'") + "; Input files updated by another job: x",
            "code: 0123 -> 4567",
        ),
        ("Missing output files: a, b; Input files updated by another job: c", "Missing output files: a and 1 more"),
        ("Forced execution", "Forced execution"),
    ],
)
def test_a_reason_is_said_in_a_few_words(reason: str, words: str) -> None:
    assert short_reason(reason) == words


def test_each_stale_job_has_one_line_with_its_reason_and_range(monkeypatch, capsys) -> None:
    jobs = [
        PlannedJob("student_train", "student_train", "Forced execution", "demo_kd", {}, {}, "results/demo_kd/stages/x.json"),
        PlannedJob("cache_logits", "logit_caching", "Forced execution", None, {}, {}, "teacher/x-1/parts/r.json", "1-of-2"),
    ]
    found = [Estimate((0.012, 0.034), (1.0, 1.0), ""), Estimate(None, None, "unknown")]
    monkeypatch.setattr(show, "planned", lambda arguments: (jobs, Path()))
    monkeypatch.setattr(show, "estimates", lambda *_: found)
    assert show.main([]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [
        ["student_train", "demo_kd", "Forced", "execution", "0.012-0.034", "1"],
        ["cache_logits", "1-of-2", "x-1", "Forced", "execution", "-", "-"],
        ["1", "of", "2", "jobs", "have", "no", "figure", "from", "past", "runs."],
    ]
    runs = [replace(jobs[0], experiment=f"demo_kd-seed{n}") for n in (0, 1)] + [replace(jobs[0], experiment="demo_sft-seed0")]
    found = [Estimate((0.01, 0.03), (1.0, 1.0), ""), Estimate((0.02, 0.03), (1.0, 2.0), ""), Estimate(None, None, "unknown")]
    assert show.by_method(runs, found) == [
        "demo_kd: 2 jobs of 2 runs, 0.03-0.06 Wh, 2-3 min",
        "demo_sft: 1 jobs of 1 runs, - Wh, - min",
    ]
    monkeypatch.setattr(show, "planned", lambda arguments: ([], Path()))
    assert show.main([]) == 0 and capsys.readouterr().out == "Nothing is stale.\n"
