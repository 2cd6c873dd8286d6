"""A model as judge of answers: asked which of two is better, in both orders (Zheng et al. 2023, "Judging LLM-as-a-Judge")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch

from workflow_scripts.distill.batching import by_length, hidden_states, in_batches, pad_rows
from workflow_scripts.distill.rows import Messages
from workflow_scripts.errors import UserError

LETTERS = ("A", "B")
ENOUGH = 64  # comparisons of neither, after which a judge is given up
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


@dataclass
class Judge:
    """A model that is asked which answers are better, and what it has replied so far."""

    model: Any
    tokenizer: Any
    name: str
    context: int  # tokens
    rows: int  # questions that it is asked at once
    asked: int = 0
    neither: int = 0  # comparisons in which it chose none of the two
    read: int = 0  # tokens

    def wins(self, prompts: Sequence[tuple[Messages, Sequence[str]]]) -> list[list[int]]:
        """Wins of each answer of each prompt: an answer wins against another one where it is preferred in both orders.

        A comparison that does not fit the judge's context, in which A and B together are less probable than LEAST_MASS, or are
        equally probable, is one of neither.
        """
        asked = [(n, q) for n, (turns, answers) in enumerate(prompts) for q in self.questions(turns, answers)]
        fitting = [(n, q) for n, q in asked if len(q.input_ids) < self.context]
        preferred: dict[tuple[int, int, int], bool] = {}
        for batch, found in in_batches(
            by_length(fitting, self.rows, lambda each: len(each[1].input_ids)),
            lambda batch: probabilities(self.model, [q for _, q in batch], self.tokenizer.pad_token_id),
        ):
            for (n, q), (first, second) in zip(batch, found, strict=True):
                if first + second >= LEAST_MASS and first != second:
                    preferred[n, q.first, q.second] = first > second
        wins = [[0] * len(answers) for _, answers in prompts]
        for (n, one, other), better in preferred.items():
            if better and preferred.get((n, other, one)) is False:
                wins[n][one] += 1
        self.read += sum(len(q.input_ids) for _, q in fitting)
        self.asked += len(asked)
        self.neither += len(asked) - len(preferred)
        return wins

    def questions(self, conversation: Messages, answers: Sequence[str]) -> list[Question]:
        """All ordered pairs of the answers of one conversation. Raises JudgeError where the letters are no single tokens."""
        said = "\n\n".join(f"{message['role']}: {message['content']}" for message in conversation)
        found = []
        for first, second in permutations(range(len(answers)), 2):
            text = INSTRUCTION.format(conversation=said, first=answers[first], second=answers[second])
            prompt = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
            )
            ids, *replies = (self.tokenizer(prompt + reply, add_special_tokens=False)["input_ids"] for reply in ("", *LETTERS))
            letters = [reply[len(ids)] for reply in replies if reply[: len(ids)] == ids and len(reply) > len(ids)]
            if len(set(letters)) < len(LETTERS):
                raise JudgeError(
                    f"dpo.judge_labeling: the chat template and tokenizer of {self.name} give A and B no first token of their "
                    "own: choose another judge_model, or likelihood_mean as scoring_method"
                )
            found.append(Question(first, second, ids, (letters[0], letters[1])))
        return found

    def check(self, last: bool) -> None:
        """Raise JudgeError where it has chosen neither answer in ENOUGH comparisons, or in all when these were the last."""
        if self.asked and self.neither == self.asked and (last or self.asked >= ENOUGH):
            raise JudgeError(
                f"dpo.judge_labeling.scoring_method = judge: {self.name} replied neither A nor B in all {self.asked} "
                "comparisons: name a model that follows instructions as judge_model, or choose likelihood_mean"
            )


@torch.no_grad()
def probabilities(model: Any, asked: Sequence[Question], pad_id: int) -> list[tuple[float, float]]:
    """Probability that the reply to each question begins with A, and with B."""
    rows = [{"input_ids": [*q.input_ids, q.letters[0]], "loss_mask": [0] * len(q.input_ids) + [1]} for q in asked]
    states = hidden_states(model, pad_rows(rows, pad_id))
    found = torch.softmax(model.lm_head(states).float(), -1)
    letters = torch.tensor([q.letters for q in asked], device=found.device)
    return [(first, second) for first, second in found.gather(1, letters).tolist()]
