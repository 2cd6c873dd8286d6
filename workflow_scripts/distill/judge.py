"""A model as judge of answers: asked which of two is better, in both orders (Zheng et al. 2023, "Judging LLM-as-a-Judge")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch

from workflow_scripts.distill.batching import by_length, hidden_states, in_batches, pad_rows
from workflow_scripts.distill.corpus import tokenise_answer
from workflow_scripts.distill.rows import Messages
from workflow_scripts.errors import UserError

LETTERS = ("A", "B")
LEAST_MASS = 0.5  # of both letters together; below it the judge has answered neither
INSTRUCTION = """Below are a conversation and two answers to its last message.

{conversation}

Answer A:
{first}

Answer B:
{second}

Which answer is better? Reply with one letter, A or B."""


class JudgeError(UserError):
    """A judge that cannot be asked, or does not answer."""


@dataclass(frozen=True)
class Question:
    """Whether answer `first`, shown as A, is better than `second`: tokens of the prompt and of each letter as the reply."""

    first: int
    second: int
    input_ids: list[int]
    letters: tuple[int, int]


def questions(tokenizer: Any, conversation: Messages, answers: Sequence[str]) -> list[Question]:
    """All ordered pairs of the answers of one conversation. Raises JudgeError where the letters are no single tokens."""
    said = "\n\n".join(f"{message['role']}: {message['content']}" for message in conversation)
    found = []
    for first, second in permutations(range(len(answers)), 2):
        text = INSTRUCTION.format(conversation=said, first=answers[first], second=answers[second])
        replies = [tokenise_answer(tokenizer, [{"role": "user", "content": text}], letter, False) for letter in LETTERS]
        if replies[0] is None or replies[1] is None or replies[0][1][0] == replies[1][1][0]:
            raise JudgeError(
                "dpo.judge_labeling.scoring_method = judge: the teacher's chat template and tokenizer give A and B no first "
                "token of their own: choose likelihood_mean"
            )
        found.append(Question(first, second, replies[0][0], (replies[0][1][0], replies[1][1][0])))
    return found


@torch.no_grad()
def probabilities(model: Any, asked: Sequence[Question], pad_id: int) -> list[tuple[float, float]]:
    """Probability that the reply to each question begins with A, and with B."""
    rows = [{"input_ids": [*q.input_ids, q.letters[0]], "loss_mask": [0] * len(q.input_ids) + [1]} for q in asked]
    states = hidden_states(model, pad_rows(rows, pad_id))
    found = torch.softmax(model.lm_head(states).float(), -1)
    letters = torch.tensor([q.letters for q in asked], device=found.device)
    return [(first, second) for first, second in found.gather(1, letters).tolist()]


def judge(
    model: Any, tokenizer: Any, prompts: Sequence[tuple[Messages, Sequence[str]]], context: int, rows: int
) -> tuple[list[list[int]], dict[str, int]]:
    """Wins of each answer of each prompt, and what was done: tokens read, comparisons, those in which the judge chose neither.

    An answer wins against another one where it is preferred in both orders. A comparison that does not fit the judge's
    `context` [tokens], or in which A and B together are less probable than LEAST_MASS, is one of neither.
    """
    asked = [(n, q) for n, (turns, answers) in enumerate(prompts) for q in questions(tokenizer, turns, answers)]
    fitting = [(n, q) for n, q in asked if len(q.input_ids) < context]
    preferred: dict[tuple[int, int, int], bool] = {}
    for batch, found in in_batches(
        by_length(fitting, rows, lambda each: len(each[1].input_ids)),
        lambda batch: probabilities(model, [q for _, q in batch], tokenizer.pad_token_id),
    ):
        for (n, q), (first, second) in zip(batch, found, strict=True):
            if first + second >= LEAST_MASS:
                preferred[n, q.first, q.second] = first > second
    wins = [[0] * len(answers) for _, answers in prompts]
    for (n, first, second), better in preferred.items():
        if better and preferred.get((n, second, first)) is False:
            wins[n][first] += 1
    counts = {"input": sum(len(q.input_ids) for _, q in fitting), "asked": len(asked), "neither": len(asked) - len(preferred)}
    return wins, counts
