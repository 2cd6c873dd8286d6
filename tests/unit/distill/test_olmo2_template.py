"""The shipped OLMo 2 template renders what the original does, and its markers are on the assistant's tokens alone."""

from __future__ import annotations

import itertools

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from workflow_scripts.distill import corpus
from workflow_scripts.distill.generation import prompt_tokens
from workflow_scripts.distill.templates import install_chat_template

# As published with OLMo-2-1124-7B-SFT and its sisters: open-instruct's template `tulu`, trained with --add_bos.
ORIGINAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<|system|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'user' %}"
    "{{ '<|user|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}{% if not loop.last %}"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token + '\n' }}{% else %}"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}{% endif %}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [
    {"role": "user", "content": "How are you doing?"},
    {"role": "assistant", "content": "I'm fine.\n\nAnd you?"},
    {"role": "user", "content": " Two  spaces, ünïcode, {{ braces }} and <|user|>"},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": "Bye\n"},
    {"role": "assistant", "content": "Bye. "},
]
END = "<|endoftext|>"


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte; END begins, ends and is special, <|user|> and its like are plain text, as in OLMo 2's own."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    model.pre_tokenizer, model.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=model, bos_token=END, eos_token=END, pad_token="<|pad|>")


def assistant_texts(tokenizer, messages) -> list[str]:
    """Decoded runs of tokens that carry loss."""
    (row,) = corpus.tokenise_all(tokenizer, [messages], 10_000)
    assert len(row["input_ids"]) == len(row["loss_mask"])
    pairs = zip(row["loss_mask"], row["input_ids"], strict=True)
    return [tokenizer.decode([i for _, i in run]) for on, run in itertools.groupby(pairs, lambda pair: pair[0]) if on]


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("turns", range(1, len(TURNS) + 1))
@pytest.mark.parametrize("system", [[], [SYSTEM]])
def test_the_text_is_the_original_s(tokenizer, system, turns: int, prompt: bool) -> None:
    messages = system + TURNS[:turns]
    original = tokenizer.apply_chat_template(messages, chat_template=ORIGINAL, tokenize=False, add_generation_prompt=prompt)
    install_chat_template(tokenizer, "olmo2")
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt) == original
    assert original.startswith(f"{END}<|{messages[0]['role']}|>\n")


def test_the_published_example(tokenizer) -> None:
    install_chat_template(tokenizer, "olmo2")
    text = tokenizer.apply_chat_template([TURNS[0], {"role": "assistant", "content": "I'm just a program."}], tokenize=False)
    assert text == "<|endoftext|><|user|>\nHow are you doing?\n<|assistant|>\nI'm just a program.<|endoftext|>"


@pytest.mark.parametrize("system", [[], [SYSTEM]])
def test_loss_is_on_every_answer_and_its_end_and_nowhere_else(tokenizer, system) -> None:
    install_chat_template(tokenizer, "olmo2")
    assert assistant_texts(tokenizer, system + TURNS) == [f"I'm fine.\n\nAnd you?{END}", END, f"Bye. {END}"]
    assert assistant_texts(tokenizer, system + TURNS[:3]) == [f"I'm fine.\n\nAnd you?{END}"]


def test_a_prompt_is_the_beginning_of_the_training_row(tokenizer) -> None:
    install_chat_template(tokenizer, "olmo2")
    prompt = prompt_tokens(tokenizer, TURNS[:1])
    (row,) = corpus.tokenise_all(tokenizer, [TURNS[:2]], 10_000)
    assert row["input_ids"].tolist()[: len(prompt)] == prompt and row["loss_mask"].tolist().index(1) == len(prompt)
