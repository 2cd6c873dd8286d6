"""Instructions whose observance a program can check: a quality of generated answers that no pipeline trains on.

The kinds are those of IFEval (Zhou et al. 2023, arXiv 2311.07911, table 2) that need no language model and no dictionary.
Each is put after a held-out question; an answer follows it or not. `VERSION` changes with any question or check.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from workflow_scripts.distill.corpus import Messages

VERSION = 1
KINDS = 12
WORDS = ("water", "house", "light", "people", "number", "music", "garden", "morning")
ENDS = ("That is all I can say.", "I hope this helps.", "Ask me again tomorrow.")


@dataclass(frozen=True)
class Instruction:
    """What is asked, in words, and whether a text without blanks around it does it. An empty text follows nothing."""

    text: str
    check: Callable[[str], bool]

    def followed(self, answer: str) -> bool:
        """Whether an answer does what is asked."""
        answer = answer.strip()
        return bool(answer) and self.check(answer)

    def put(self, question: Messages) -> Messages:
        """The question with the instruction at the end of its last turn."""
        *before, last = question
        return [*before, {**last, "content": f"{last['content']}\n{self.text}"}]


def _words(answer: str) -> list[str]:
    return re.findall(r"\w+", answer.lower())


def _bullets(answer: str) -> int:
    return len(re.findall(r"^\s*[*-] ", answer, re.MULTILINE))


def _is_json(answer: str) -> bool:
    try:
        json.loads(re.sub(r"^```(?:json)?|```$", "", answer).strip())
    except ValueError:
        return False
    return True


def _kinds(draw: random.Random) -> Sequence[Callable[[], Instruction]]:
    """Every kind, with its values drawn when it is made."""
    word, others = draw.choice(WORDS), draw.sample(("the", "and", "of", "to", "in", "is"), 2)
    few, end = draw.choice((2, 3, 4)), draw.choice(ENDS)
    short, long = draw.choice((10, 15, 20)), draw.choice((15, 20, 25))
    return (
        lambda: Instruction("Do not use any comma.", lambda a: "," not in a),
        lambda: Instruction(f'Use the word "{word}".', lambda a: word in _words(a)),
        lambda: Instruction(f"Answer with fewer than {short} words.", lambda a: len(_words(a)) < short),
        lambda: Instruction("Write in lowercase letters only.", lambda a: a == a.lower()),
        lambda: Instruction(
            f'Do not use the words "{others[0]}" and "{others[1]}".', lambda a: not set(others) & set(_words(a))
        ),
        lambda: Instruction(f"Answer with at least {long} words.", lambda a: len(_words(a)) >= long),
        lambda: Instruction(f'Finish with exactly this sentence: "{end}"', lambda a: a.endswith(end)),
        lambda: Instruction(f'Write exactly {few} bullet points, each begins with "* ".', lambda a: _bullets(a) == few),
        lambda: Instruction("Put your whole answer in double quotation marks.", lambda a: len(a) > 1 and a[0] == a[-1] == '"'),
        lambda: Instruction("Write in capital letters only.", lambda a: a == a.upper()),
        lambda: Instruction("Give your whole answer as JSON.", _is_json),
        lambda: Instruction(f'Use the word "{word}" at least {few} times.', lambda a: _words(a).count(word) >= few),
    )


def instructions(count: int) -> list[Instruction]:
    """`count` instructions, every kind in turn; the same for every model and every run."""
    found = []
    for number in range(count):
        kinds = _kinds(random.Random(f"{VERSION} {number}"))
        found.append(kinds[number % KINDS]())
    return found
