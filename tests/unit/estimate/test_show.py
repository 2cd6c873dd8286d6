"""The plan as a person reads it: reasons in a few words, ranges in two digits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from workflow_scripts.estimate import show
from workflow_scripts.estimate.pricing import Cost, Range
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


def cost(wh: Range, minutes: Range) -> Cost:
    return Cost(wh * 3600.0, minutes * 60.0, "history n=1")


def test_each_stale_job_has_one_line_with_its_reason_and_range(monkeypatch, capsys) -> None:
    jobs = [
        PlannedJob("student_train", "student_train", "Forced execution", "demo_kd", {}, {}, "results/demo_kd/stages/x.json"),
        PlannedJob("cache_logits", "logit_caching", "Forced execution", None, {}, {}, "teacher/x-1/parts/r.json", "1-of-2"),
    ]
    found = [cost(Range(0.012, 0.02, 0.034), Range.exactly(1.0)), None]
    monkeypatch.setattr(show, "planned", lambda arguments: (jobs, Path()))
    monkeypatch.setattr(show, "estimates", lambda *_: found)
    assert show.main([]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [
        ["student_train", "demo_kd", "Forced", "execution", "0.02", "(0.012-0.034)", "1"],
        ["cache_logits", "1-of-2", "x-1", "Forced", "execution", "-", "-"],
        ["in", "all:", "2", "jobs,", "at", "least", "0.02", "(0.012-0.034)", "Wh,", "1", "min"],
        ["1", "of", "2", "jobs", "have", "no", "figure", "from", "past", "runs."],
    ]
    runs = [replace(jobs[0], experiment=f"demo_kd-seed{n}") for n in (0, 1)] + [replace(jobs[0], experiment="demo_sft-seed0")]
    ranges = [(Range(0.01, 0.02, 0.03), Range.exactly(90.0)), (Range(0.02, 0.02, 0.03), Range(90.0, 90.0, 120.0))]
    found = [*(cost(*pair) for pair in ranges), None]
    assert show.by_method(runs, found) == [
        "demo_kd, 2 runs: 2 jobs, 0.04 (0.03-0.06) Wh, 180 (180-210) min",
        "demo_sft, 1 runs: 1 jobs, unknown",
    ]
    monkeypatch.setattr(show, "planned", lambda arguments: ([], Path()))
    assert show.main([]) == 0 and capsys.readouterr().out == "Nothing is stale.\n"
