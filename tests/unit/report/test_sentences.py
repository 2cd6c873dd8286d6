"""What the page says of each verdict and each cause: one fact a sentence, no more than its numbers hold."""

from __future__ import annotations

from typing import get_args

import pytest

from tests.helpers.summaries import baseline, kd, read
from workflow_scripts.accounting.load import Loaded
from workflow_scripts.accounting.rows import Answer, Comparison, Properties, Refusal
from workflow_scripts.accounting.verdicts import Cause
from workflow_scripts.report.sentences import CAUSES, REFUSED, sentences
from workflow_scripts.stages.comparison import compare


@pytest.fixture(scope="module")
def made() -> Comparison:
    return compare(Loaded([read(baseline()), read(kd("kd", 600, 700))]), "cross_entropy", ["gold"])[0]


def said(made: Comparison, **row) -> tuple[str, str]:
    known = {
        "experiment": "kd",
        "baseline": "gold",
        "runs": 3,
        "baseline_runs": 3,
        "target": 4.7,
        "final": 4.6,
        "baseline_final": 4.73,
        "better": 0.13,
    }
    spans = {"better_low": 0.1, "better_high": 0.16, "saved": -0.05, "saved_low": -0.08, "saved_high": -0.02}
    answers = [Answer.model_validate({**known, **spans, **row})]
    return sentences(made.model_copy(update={"answers": answers}))[0]


def test_every_verdict_in_its_words(made: Comparison) -> None:
    pays = said(made, kind="pays", at_equal="pays", reuses=5.04, reuses_low=3.0, reuses_high=9.0)
    assert pays == ("kd pays from 5 (95 %: 3 to 9) reuses of its teacher's output, at a cross entropy of 4.7.", "")
    first, _ = said(made, kind="pays", at_equal="pays", reuses=0.8, reuses_low=0.7, reuses_high=0.9)
    assert first.startswith("kd pays from the first use of its teacher's output (N* = 0.8 (95 %: 0.7 to 0.9)), at")
    never, _ = said(made, kind="never", at_equal="never")
    assert never == "kd never pays at a cross entropy of 4.7: its training saves -5 % (95 %: -8 % to -2 %) of gold's energy."
    only, _ = said(made, kind="only way", at_equal="undetermined")
    assert only.startswith("kd reaches a cross entropy of 4.6 within its budget, gold does not: it ends at 4.6, gold at 4.73;")
    worse, _ = said(made, kind="not reached", at_equal="never")
    assert worse.startswith("kd does not reach the cross entropy of gold within its budget:") and "never pays" in worse
    refusal = Refusal(what="cpu share", experiment="gold", stage="student_train", value="0.57")
    refused, _ = said(made, kind="not comparable", refusals=[refusal])
    expected = "kd is not compared with gold: stage student_train of gold had 0.57 of its host's CPU time: repeat it alone."
    assert refused == expected


def test_one_run_says_the_difference_and_the_repeatability(made: Comparison) -> None:
    text, remedy = said(
        made,
        kind="undetermined",
        cause="one run",
        runs=1,
        baseline_runs=1,
        saved=0.14,
        saved_low=None,
        repeatability=0.23,
        seeds_needed=22,
    )
    assert text == (
        "kd: undetermined. There is one run of kd and gold; the difference to an equal quality is 14 % (no interval); equal "
        "work here repeats to 23 %."
    )
    least = "At least 22 seeds of each would tell such a difference, more if seeds differ more than repeated work"
    assert remedy == f"kd: {least}."


@pytest.mark.parametrize("cause", get_args(Cause))
def test_every_cause_has_its_words_and_its_remedy(made: Comparison, cause: str) -> None:
    text, remedy = said(made, kind="undetermined", cause=cause)
    assert text.startswith("kd: undetermined. ") and CAUSES[cause][0][1:20].split("{")[0] in text
    assert bool(remedy) == bool(CAUSES[cause][1]) and "{" not in text + remedy


def test_every_property_that_refuses_has_its_words() -> None:
    assert set(REFUSED) == {*get_args(Properties), "cpu share", "another meter", "gpu processes"}


def test_no_interval_is_no_definite_word(made: Comparison) -> None:
    (pair,) = sentences(made)
    assert pair[0].startswith("kd: undetermined.") and pair[0].endswith("equal tokens is 30 %; nothing here was done twice.")
