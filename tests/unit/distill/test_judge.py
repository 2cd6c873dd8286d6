"""The teacher as judge: both orders, ties, neither, and what reaches the pairs."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.partial import partial
from tests.unit.distill.test_olmo2_template import tokenizer  # noqa: F401
from tests.unit.stages.test_own_tokenizer import OWN, made  # noqa: F401
from workflow_scripts.artefact import open_artefact, read_json
from workflow_scripts.distill import judge, preference
from workflow_scripts.distill.corpus import read_table
from workflow_scripts.distill.models import load_tokenizer
from workflow_scripts.stages.merge_pairs import merge_pairs
from workflow_scripts.stages.preference_dataset import preference_dataset
from workflow_scripts.stages.runtime.common import Arguments

TURNS = [{"role": "user", "content": "Which?"}]
RUN = {"teacher": {"dtype": "float32"}, "model": {"attn_implementation": "sdpa"}}


def judge_of(folder: Path, model: Any = None, context: int = 10_000) -> judge.Judge:
    """A judge with the teacher's tokenizer and its chat template."""
    return judge.Judge(model, load_tokenizer(folder / "c" / "t" / "tokenizer"), "t", context, 8)


@pytest.fixture
def opinion(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """What the judge replies to the comparisons of two answers: (A, B) first for the order 0, 1, then for 1, 0."""
    replies: list[tuple[float, float]] = []

    def reply(model: Any, asked: list[judge.Question], pad_id: int) -> list[tuple[float, float]]:
        return [replies[q.first] for q in asked]

    monkeypatch.setattr(judge, "probabilities", reply)
    return replies


@pytest.mark.parametrize(
    ("replies", "wins", "neither"),
    [
        ([(0.9, 0.1), (0.2, 0.7)], [1, 0], 0),  # the first one, wherever it stands
        ([(0.1, 0.8), (0.9, 0.1)], [0, 1], 0),
        ([(0.9, 0.1), (0.9, 0.1)], [0, 0], 0),  # whatever stands first
        ([(0.9, 0.1), (0.1, 0.2)], [0, 0], 1),  # once none of them
        ([(0.45, 0.45), (0.9, 0.1)], [0, 0], 1),  # once both alike
    ],
)
def test_an_answer_wins_that_is_preferred_in_both_orders(
    made: Path,  # noqa: F811
    opinion: list[tuple[float, float]],
    replies: list[tuple[float, float]],
    wins: list[int],
    neither: int,
) -> None:
    opinion += replies

    asked = judge_of(made)
    assert asked.wins([(TURNS, ["x", "y"])]) == [wins] and (asked.asked, asked.neither) == (2, neither)
    assert asked.read == sum(len(q.input_ids) for q in asked.questions(TURNS, ["x", "y"])) > 0


def test_what_does_not_fit_the_judge_is_not_asked(made: Path, opinion: list[tuple[float, float]]) -> None:  # noqa: F811
    opinion += [(0.9, 0.1), (0.1, 0.9)]
    asked = judge_of(made, context=2000)
    assert asked.wins([(TURNS, ["x", "y"]), (TURNS, ["x" * 5000, "y"])]) == [[1, 0], [0, 0]] and asked.neither == 2


def test_probabilities_are_those_of_the_next_token(made: Path) -> None:  # noqa: F811
    model = AutoModelForCausalLM.from_pretrained(made / "t")
    tokens = judge_of(made).tokenizer
    torch.nn.init.normal_(model.lm_head.weight, std=1.0)
    asked = judge_of(made).questions(TURNS, ["short", "a longer one", "third"])
    assert {(q.first, q.second) for q in asked} == {(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)}
    for q, (first, second) in zip(asked, judge.probabilities(model, asked, tokens.pad_token_id), strict=True):
        with torch.no_grad():
            whole = torch.softmax(model(torch.tensor([q.input_ids])).logits[0, -1], -1)
        assert [tokens.decode([letter]) for letter in q.letters] == ["A", "B"]
        assert (first, second) == pytest.approx((whole[q.letters[0]].item(), whole[q.letters[1]].item()), rel=1e-4)


def test_ties_are_dropped_and_counted() -> None:
    def sample(text: str, wins: int) -> preference.Sample:
        return preference.Sample(text, [1], False, 0, -1.0, wins)

    dropped: Counter[str] = Counter()
    assert preference.rank([sample("a", 1), sample("b", 1)], "judge", 0.0, False, dropped) is None
    best, worst = sample("a", 2), sample("c", 0)
    assert preference.rank([sample("b", 1), best, worst], "judge", 0.0, False, dropped) == (best, worst)
    assert dropped == {"tie": 1}


def settings(method: str, merge: bool) -> Any:
    generation = {"backend": "transformers", "decoding_strategy": "sampling", "temperature": 1.0, "top_p": 1.0}
    generation |= {"max_new_tokens": 5, "batch_size": 4, "seed": 0}
    content: dict[str, Any] = {"samples_per_prompt": 2, "train_prompts": 6, "evaluation_prompts": 3, "generation": generation}
    if merge:
        content |= {"keep_truncated": True, "judge_labeling": {"scoring_method": method, "min_margin": 0.0}}
        return partial(dpo=content, dpo_preference_dataset_path=None, **copy.deepcopy(RUN))
    labeling = {"judge_labeling": {"scoring_method": method}} if method == "judge" else {}
    return partial(dpo=content | labeling, **copy.deepcopy(RUN))


def pairs(folder: Path, state: pytest.MonkeyPatch, method: str, of: str | None = None) -> Path:
    """Manifest of the pairs of one part; `of` names another judge than the teacher."""
    state.setenv("STAGE_STATE_DIR", str(folder / f"state-{method}"))
    state.setenv("STAGE_UNITS_DIR", str(folder / f"units-{method}"))
    inputs = {"teacher": folder / "t.json", "corpus": folder / "c" / "t" / "manifest.json"}
    inputs |= {"judge": folder / f"{of}.json"} if of else {}
    part, out = folder / f"part-{method}.json", folder / method / "preference_dataset" / "manifest.json"
    preference_dataset(Arguments(settings(method, False), inputs, part, {"part": "1-of-1"}))
    merge_pairs(Arguments(settings(method, True), inputs, out, {}, [part]))
    return out


def read_by(folder: Path, method: str) -> int:
    """Tokens that the models have read for the pairs of a method."""
    return sum(read_json(path)["work"]["input"] for path in (folder / f"units-{method}").glob("unit-*.json"))


def test_the_judge_ranks_the_same_samples_and_its_reading_is_on_the_bill(
    made: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def longest(model: Any, asked: list[judge.Question], pad_id: int) -> list[tuple[float, float]]:
        tokens = load_tokenizer(made / "t")
        found = []
        for q in asked:
            text = tokens.decode(q.input_ids)
            first, _, second = text.partition("Answer A:\n")[2].partition("\n\nAnswer B:\n")
            better = (first, q.first) > (second.partition("\n\nWhich answer")[0], q.second)
            found.append((0.9, 0.1) if better else (0.1, 0.9))
        return found

    monkeypatch.setattr(judge, "probabilities", longest)
    folder, facts = open_artefact(pairs(made, monkeypatch, "judge"), "preference_dataset")
    assert facts["train"]["pairs"] == 6 and all(row["chosen_score"] == 1.0 for row in read_table(folder / "train.parquet"))
    likelihood, _ = open_artefact(pairs(made, monkeypatch, "likelihood_mean"), "preference_dataset")
    texts = [
        [sorted([row["chosen"][0]["content"], row["rejected"][0]["content"]]) for row in read_table(at / "train.parquet")]
        for at in (folder, likelihood)
    ]
    assert texts[0] == texts[1], "the samples are the same"
    assert read_by(made, "judge") > 2 * read_by(made, "likelihood_mean")


def test_another_judge_reads_in_its_own_words(
    made: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[list[int]] = []

    def first(model: Any, found: list[judge.Question], pad_id: int) -> list[tuple[float, float]]:
        assert model.config.vocab_size == 310 and pad_id == own.pad_token_id
        asked.extend(q.input_ids for q in found)
        return [(0.9, 0.1) if q.first < q.second else (0.1, 0.9) for q in found]

    with pytest.raises(judge.JudgeError, match="judge_model: the tokenizer of s has no chat template"):
        pairs(made, monkeypatch, "judge", "s")
    own = load_tokenizer(made / "s")
    own.chat_template = OWN
    own.save_pretrained(made / "s")
    monkeypatch.setattr(judge, "probabilities", first)
    _, facts = open_artefact(pairs(made, monkeypatch, "judge", "s"), "preference_dataset")
    assert (facts["teacher"], facts["judge"], facts["train"]["pairs"]) == ("t", "s", 6)
    assert own.decode(asked[0]).startswith("U:Below are a conversation") and own.decode(asked[0]).endswith("A:")
    pairs(made, monkeypatch, "likelihood_mean")
    assert read_by(made, "judge") - read_by(made, "likelihood_mean") == sum(map(len, asked))


def test_a_judge_that_answers_neither_is_refused_with_a_remedy(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """The toy finds every token equally likely."""
    with pytest.raises(judge.JudgeError, match="t replied neither A nor B in all 18 comparisons: name a model"):
        pairs(made, monkeypatch, "judge")
