"""A student with a tokenizer of its own: the same rows and answers in its tokens, and bits per byte as the common axis."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.helpers.partial import partial
from tests.unit.distill.test_olmo2_template import tokenizer  # noqa: F401
from tests.unit.settings.test_settings import load
from workflow_scripts.artefact import open_artefact, read_json, write_json
from workflow_scripts.distill import corpus
from workflow_scripts.distill.models import load_tokenizer, model_facts
from workflow_scripts.plan.plan import Plan
from workflow_scripts.settings import SettingsError
from workflow_scripts.stages.evaluation import evaluation
from workflow_scripts.stages.preprocess import preprocess
from workflow_scripts.stages.runtime.common import Arguments
from workflow_scripts.stages.student_train import tokenise_for

STOP = "<|stop|>"
OWN = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A:{% generation %}{{ m.content }}" + STOP + "{% endgeneration %}"
    "{% elif m.role == 'user' %}U:{{ m.content }} {% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)
ROWS = [
    {"messages": [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": f"Answer é {i}."}]}
    for i in range(20)
]


def save_model(folder: Path, tokens: Any, rows: int) -> None:
    """A model that finds every token equally likely."""
    config = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=rows)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.generation_config.eos_token_id = model.config.eos_token_id = tokens.eos_token_id
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    facts = {"schema": "artefact/1", "kind": "model", "name": folder.name, "path": str(folder)}
    write_json(folder.with_suffix(".json"), facts | model_facts(folder))


@pytest.fixture
def made(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """Corpora `c/t` and `c/s` of a teacher of one token per byte and of a student that has other ids and words for some."""
    monkeypatch.delenv("STAGE_STATE_DIR", raising=False)
    save_model(tmp_path / "t", tokenizer, 258)
    other = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = {token: 300 - number for number, token in enumerate(other["model"]["vocab"])} | {"An": 301, "sw": 302}
    other["model"] |= {"vocab": vocabulary, "merges": [["A", "n"], ["s", "w"]]}
    other["added_tokens"] = []
    (tmp_path / "s.txt").write_text(json.dumps(other))
    save_model(
        tmp_path / "s", PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "s.txt"), eos_token=STOP, pad_token="<|p|>"), 310
    )
    (tmp_path / "own.jinja").write_text(OWN)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    data = {
        "dataset_choice": "rows",
        "datasets": {"rows": {"dataset_path": str(tmp_path / "rows.jsonl")}},
        "max_sequence_length": 90,
    }
    data |= {"train_examples": 12, "evaluation_examples": 4, "seed": 0, "max_dropped_share": 0.05}
    run = {"download_dir": ""}
    settings = partial(data=data, model={"chat_template": "olmo2"})
    preprocess(Arguments(settings, {"teacher": tmp_path / "t.json"}, tmp_path / "c" / "t" / "manifest.json", run))
    settings = partial(data=data, model={"student_chat_template": str(tmp_path / "own.jinja")})
    inputs = {"teacher": tmp_path / "s.json", "corpus": tmp_path / "c" / "t" / "manifest.json"}
    preprocess(Arguments(settings, inputs, tmp_path / "c" / "s" / "manifest.json", run))
    return tmp_path


def test_the_student_s_corpus_has_the_same_rows_in_its_own_tokens(made: Path) -> None:
    facts = [read_json(made / "c" / name / "manifest.json") for name in ("t", "s")]
    assert facts[0]["split_sha256"] == facts[1]["split_sha256"] and facts[0]["tokenizer_sha256"] != facts[1]["tokenizer_sha256"]
    tokens = load_tokenizer(made / "c" / "s" / "tokenizer")
    for split in ("train", "evaluation"):
        theirs, own = (corpus.read_table(made / "c" / name / f"{split}.parquet") for name in ("t", "s"))
        assert [(row["example_id"], row["messages"]) for row in theirs] == [(row["example_id"], row["messages"]) for row in own]
        marked = [[token for token, on in zip(row["input_ids"], row["loss_mask"], strict=True) if on] for row in own]
        assert [tokens.decode(ids) for ids in marked] == [row["messages"][1]["content"] + STOP for row in own]
        assert all(302 in ids and ids[-1] == facts[1]["end_token_id"] for ids in marked)


def test_what_the_teacher_wrote_is_tokenised_for_the_student(made: Path) -> None:
    tokens = load_tokenizer(made / "c" / "s" / "tokenizer")
    asked, said = ROWS[0]["messages"]
    whole, cut = (
        {"messages": [asked, said], "input_ids": [1, 2], "loss_mask": [0, 1], "truncated": truncated}
        for truncated in (False, True)
    )
    for row, expected in zip(tokenise_for(tokens, [whole, cut]), (said["content"] + STOP, said["content"]), strict=True):
        begin = row["loss_mask"].index(1)
        assert tokens.decode(row["input_ids"][:begin]) == f"U:{asked['content']} A:" and set(row["loss_mask"][begin:]) == {1}
        assert tokens.decode(row["input_ids"][begin:]) == expected
    pair = {"prompt": [asked], "chosen": [said], "rejected": [{**said, "content": "No"}], "chosen_truncated": False}
    found = corpus.tokenise_pair(tokens, pair | {"rejected_truncated": True})
    assert found is not None
    texts = [tokens.decode(found[f"{part}_ids"]) for part in ("prompt", "chosen", "rejected")]
    assert texts == [f"U:{asked['content']} A:", said["content"] + STOP, "No"]
    assert (found["chosen_tokens"], found["rejected_tokens"]) == (len(found["chosen_ids"]), 2)


def test_bits_per_byte_compare_across_vocabularies_and_agreement_is_null_with_its_reason(made: Path) -> None:
    options = {"evaluation": {"batch_size": 2, "generation_prompts": 1, "max_new_tokens": 2, "generation_seconds": 0.0}}
    options["evaluation"] |= {"lm_eval_tasks": [], "instruction_prompts": 3, "instruction_new_tokens": 2}
    settings = partial(**options, training={"dtype": "float32"}, model={"attn_implementation": "sdpa"})
    found = {}
    for name, vocabulary in (("t", 258), ("s", 303)):
        inputs = {"model": made / f"{name}.json", "corpus": made / "c" / name / "manifest.json", "teacher": made / "t.json"}
        evaluation(Arguments(settings, inputs, made / f"{name}-evaluation.json", {}))
        found[name] = read_json(made / f"{name}-evaluation.json")
        folder, _ = open_artefact(inputs["corpus"], "corpus")
        rows = corpus.read_table(folder / "evaluation.parquet")
        said = sum(len(row["messages"][1]["content"].encode()) for row in rows)
        tokens = sum(corpus.loss_tokens(row) for row in rows)
        assert found[name]["bits_per_byte"] == pytest.approx(tokens * math.log2(vocabulary) / said, rel=1e-5)
        followed, entry = found[name]["rows"]["instructions"], found[name]["tasks"]["metrics"]["instructions/followed"]
        assert len(followed) == entry["examples"] == 3 and entry["value"] == sum(followed) / 3
    assert found["t"]["kl_to_teacher"] == 0 and found["t"]["no_agreement_because"] is None
    assert found["s"]["kl_to_teacher"] is None and found["s"]["top1_agreement"] is None
    assert found["s"]["no_agreement_because"] == "the teacher has another tokenizer"


def test_the_plan_tokenises_for_the_student_and_refuses_to_exchange_ids(tmp_path: Path) -> None:
    own = {"model": {"student": "other/family", "student_chat_template": "olmo2"}}
    plan = Plan(load(tmp_path, {"one": {"pipeline": "sft", **own}}))
    planned = plan.experiments["one"]
    theirs, again = plan.corpora
    assert planned.check == [] and "preprocess_student" in planned.shared and "preprocess" in planned.shared
    assert plan.corpora[again].inputs["corpus"] == plan.corpus_manifest(theirs)
    assert planned.training.inputs["corpus"] == planned.evaluation.inputs["corpus"] == plan.corpus_manifest(again)
    (written,) = plan.teacher["synthetic_generation"].values()
    assert written.parts.inputs["corpus"] == plan.corpus_manifest(theirs)
    with pytest.raises(SettingsError, match="student_chat_template gives the student a tokenizer of its own, but kd exchanges"):
        load(tmp_path, {"one": {"pipeline": "kd", **own}})


def test_folders_of_different_tokenizers_are_refused_when_the_work_is_planned(tmp_path: Path, made: Path) -> None:
    models = {"t": {"source": "folder", "path": str(made / "t")}, "s": {"source": "pruned", "of": "f", "keep_layers": [0]}}
    models["f"] = {"source": "folder", "path": str(made / "s")}
    overlay = {"pipeline": "sft", "models": models, "model": {"teacher": "t", "student": "s"}}
    with pytest.raises(
        SettingsError, match="model.student = 's' has another tokenizer than model.teacher = 't': .*student_chat"
    ):
        Plan(load(tmp_path, {"one": overlay}))
    overlay["model"] = overlay["model"] | {"student_chat_template": "olmo2"}
    assert Plan(load(tmp_path, {"one": overlay})).experiments
    overlay["model"] = {"teacher": "t", "student": str(made / "t")}
    assert Plan(load(tmp_path, {"one": overlay})).experiments
