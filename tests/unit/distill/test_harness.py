"""lm-eval tasks: what the harness finds on a local task file against a computation of our own, and errors before the work."""

from __future__ import annotations

import importlib.util
import json
import os
import sys

import pytest

from tests.conftest import REPOSITORY
from workflow_scripts.distill import harness
from workflow_scripts.settings.schema import Evaluation

installed = importlib.util.find_spec("lm_eval") is not None
needs_lm_eval = pytest.mark.skipif(
    not installed and os.environ.get("REQUIRE_LM_EVAL") != "1", reason=f"lm-eval is not installed: {harness.REMEDY}"
)
TASKS = REPOSITORY / "tests" / "tasks"


def toy_tokenizer():
    """A letter is a token: fewer letters than the toy model's 97."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    rows = [json.loads(line) for line in (TASKS / "capitals.jsonl").read_text().splitlines()]
    letters = sorted({c for row in rows for text in (row["question"], *row["choices"]) for c in text})
    table = {"w0": 0, "w1": 1, "w2": 2, **{("Ġ" if c == " " else c): i + 3 for i, c in enumerate(letters)}}
    tokenizer = Tokenizer(models.BPE(vocab=table, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", bos_token="w1", eos_token="w2")


@pytest.mark.slow
@needs_lm_eval
def test_a_local_task_gives_the_accuracy_of_our_own_computation(toy_model, monkeypatch) -> None:
    """Each choice's log-likelihood from a plain softmax over the whole text, one at a time; acc_norm divides by bytes."""
    import torch

    monkeypatch.chdir(REPOSITORY)
    tokenizer = toy_tokenizer()
    options = Evaluation(lm_eval_tasks=["capitals"], lm_eval_include_path=str(TASKS), lm_eval_batch_size=4)
    found = harness.run(toy_model, tokenizer, [2], options, harness.check(options))
    rows = [json.loads(line) for line in (TASKS / "capitals.jsonl").read_text().splitlines()]
    right = {"acc": 0, "acc_norm": 0}
    for row in rows:
        scores = []
        for choice in row["choices"]:
            before, whole = (tokenizer(text)["input_ids"] for text in (row["question"], f"{row['question']} {choice}"))
            with torch.no_grad():
                logits = toy_model(torch.tensor([whole])).logits[0].double()
            logs = logits[len(before) - 1 : -1].log_softmax(-1)
            scores.append(logs.gather(1, torch.tensor(whole[len(before) :])[:, None]).sum().item())
        lengths = [len(choice) for choice in row["choices"]]
        right["acc"] += max(range(len(scores)), key=scores.__getitem__) == row["answer"]
        right["acc_norm"] += max(range(len(scores)), key=lambda i: scores[i] / lengths[i]) == row["answer"]
    for metric, count in right.items():
        entry = found["metrics"][f"capitals/{metric}"]
        assert entry["value"] == pytest.approx(count / len(rows))
        share = count / len(rows)
        assert entry["stderr"] == pytest.approx((share * (1 - share) / (len(rows) - 1)) ** 0.5)
        assert (entry["higher_is_better"], entry["examples"], entry["version"]) == (True, 6, 1.0)
    assert right["acc"] != right["acc_norm"], "the two metrics differ on these choices, so that they are told apart"
    limited = harness.run(toy_model, tokenizer, [2], options.model_copy(update={"lm_eval_limit": 2}), harness.check(options))
    assert limited["metrics"]["capitals/acc"]["examples"] == 2


@pytest.mark.slow
@needs_lm_eval
def test_an_unknown_task_and_a_missing_folder_are_named() -> None:
    with pytest.raises(harness.HarnessError, match=r"'capital' is no task of lm-eval .*did you mean 'capitals'"):
        harness.check(Evaluation(lm_eval_tasks=["capital"], lm_eval_include_path=str(TASKS)))
    with pytest.raises(harness.HarnessError, match="lm_eval_include_path = 'nowhere' is no folder"):
        harness.check(Evaluation(lm_eval_tasks=["capitals"], lm_eval_include_path="nowhere"))


def test_without_the_package_key_value_and_remedy_are_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find(name))
    with pytest.raises(harness.HarnessError) as error:
        harness.check(Evaluation(lm_eval_tasks=["gsm8k", "ifeval"]))
    assert "evaluation.lm_eval_tasks = [gsm8k, ifeval], but the package lm-eval is not installed" in str(error.value)
    assert "pip install -r envs/requirements-lm-eval.txt" in str(error.value)
    assert harness.check(Evaluation()) is None, "nothing asked for, nothing needed"


def test_metrics_are_told_apart_by_filter_and_what_is_no_number_is_left_out() -> None:
    found = {
        "results": {
            "gsm8k": {
                "alias": "gsm8k",
                "exact_match,strict-match": 0.25,
                "exact_match_stderr,strict-match": 0.1,
                "exact_match,flexible-extract": 0.5,
                "exact_match_stderr,flexible-extract": "N/A",
            },
            "perplex": {"word_perplexity,none": 9.0, "word_perplexity_stderr,none": float("nan"), "bad,none": "x"},
        },
        "higher_is_better": {"gsm8k": {"exact_match": True}, "perplex": {"word_perplexity": False}},
        "n-samples": {"gsm8k": {"original": 9, "effective": 4}},
        "n-shot": {"gsm8k": 5},
        "versions": {"gsm8k": 3.0},
    }
    metrics = harness.metrics_of(found)
    assert set(metrics) == {"gsm8k/exact_match,strict-match", "gsm8k/exact_match,flexible-extract", "perplex/word_perplexity"}
    assert metrics["gsm8k/exact_match,strict-match"] == {
        "value": 0.25,
        "stderr": 0.1,
        "higher_is_better": True,
        "examples": 4,
        "shots": 5,
        "version": 3.0,
    }
    assert metrics["perplex/word_perplexity"]["stderr"] is None
    assert metrics["perplex/word_perplexity"]["higher_is_better"] is False
