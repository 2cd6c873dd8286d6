"""Instructions that a program checks, against answers that follow them and answers that do not."""

from __future__ import annotations

import pytest

from workflow_scripts.distill.instructions import KINDS, Instruction, instructions

FOLLOWS = {
    "Do not use any comma.": ("no comma here", "one, two"),
    "Use the word": ("{word} {word} {word} {word}", "nothing of it"),
    "Answer with fewer": ("three words only", "word " * 30),
    "Write in lowercase": ("all small", "Not small"),
    "Do not use the words": ("a cat", "the and of to in is"),
    "Answer with at least": ("word " * 30, "three words only"),
    "Finish with exactly": ("Well. {quoted}", "Well."),
    "Write exactly": ("* x\n" * 9, "* x"),
    "Put your whole answer": ('"so it is"', "so it is"),
    "Write in capital": ("LOUD 1", "Loud"),
    "Give your whole answer": ('```json\n{"a": [1]}\n```', "a: 1"),
}


def follows(instruction: Instruction) -> tuple[str, str]:
    """An answer that does as told and one that does not."""
    good, bad = next(answers for start, answers in FOLLOWS.items() if instruction.text.startswith(start))
    quoted = instruction.text.split('"')[1] if '"' in instruction.text else ""
    if instruction.text.startswith("Write exactly"):
        good = "* x\n" * int(instruction.text.split()[2])
    return good.format(word=quoted, quoted=quoted) if "{word}" in good or "{quoted}" in good else good, bad


@pytest.mark.parametrize("number", range(3 * KINDS))
def test_a_check_tells_the_two_answers_apart(number: int) -> None:
    instruction = instructions(3 * KINDS)[number]
    good, bad = follows(instruction)
    assert instruction.followed(good) and not instruction.followed(bad), instruction.text
    assert not instruction.followed(" \n"), "an empty answer follows nothing"


def test_every_kind_comes_in_turn_and_is_the_same_for_every_model() -> None:
    found = instructions(2 * KINDS)
    assert len({each.text for each in found[:KINDS]}) == KINDS
    assert [each.text for each in found[:5]] == [each.text for each in instructions(5)]


def test_an_instruction_stands_at_the_end_of_the_last_turn() -> None:
    question = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    put = instructions(1)[0].put(question)
    assert [turn["content"] for turn in put] == ["s", "u\nDo not use any comma."] and question[1]["content"] == "u"
