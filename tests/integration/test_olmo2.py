"""OLMo 2 as far as a machine without its weights can go: its template on a real tokenizer."""

from __future__ import annotations

from transformers import AutoTokenizer

from tests.conftest import Workflow
from tests.unit.distill.test_olmo2_template import END, ORIGINAL, SYSTEM, TURNS, assistant_texts
from workflow_scripts.distill.templates import install_chat_template


def test_template_on_a_real_tokenizer_with_olmo_s_special_tokens(tiny_run: Workflow) -> None:
    folder = tiny_run.path("results/models/smollm2-135m-instruct/model/tokenizer.json").parent
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": END, "eos_token": END})
    install_chat_template(tokenizer, "olmo2")
    for messages in (TURNS, [SYSTEM, *TURNS], TURNS[:3]):
        for prompt in (False, True):
            options = {"tokenize": False, "add_generation_prompt": prompt}
            original = tokenizer.apply_chat_template(messages, chat_template=ORIGINAL, **options)
            assert tokenizer.apply_chat_template(messages, **options) == original
    assert assistant_texts(tokenizer, [SYSTEM, *TURNS]) == [f"I'm fine.\n\nAnd you?{END}", END, f"Bye. {END}"]
