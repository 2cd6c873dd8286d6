"""Rounds of on-policy distillation on toy models: what the student wrote as a corpus, and its training against that of kd."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.partial import partial
from tests.unit.distill.test_olmo2_template import tokenizer  # noqa: F401
from tests.unit.stages.test_own_tokenizer import made  # noqa: F401
from workflow_scripts.artefact import open_artefact, read_json, write_json
from workflow_scripts.distill import corpus
from workflow_scripts.distill.generation import Answer, Prompt
from workflow_scripts.distill.models import load_tokenizer, model_facts
from workflow_scripts.settings.schema import Training
from workflow_scripts.stages.logit_caching import logit_caching
from workflow_scripts.stages.merge_logits import merge_logits
from workflow_scripts.stages.merge_rollouts import merge_rollouts
from workflow_scripts.stages.rollout import rollout
from workflow_scripts.stages.runtime.common import Arguments
from workflow_scripts.stages.student_train import student_train
from workflow_scripts.stages.synthetic_generation import answer_row

SCORED = {"sampling": "top_k", "top_k_logits": 8}
RUN = {"training": {"dtype": "float32"}, "teacher": {"dtype": "float32"}, "model": {"attn_implementation": "sdpa"}}


@pytest.fixture
def folder(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A corpus with its teacher `t`, and a student `p` of other, random weights."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(made / "t")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(made / "p")
    load_tokenizer(made / "t").save_pretrained(made / "p")
    facts = {"schema": "artefact/1", "kind": "model", "name": "p", "path": str(made / "p")}
    write_json(made / "p.json", facts | model_facts(made / "p"))
    return made


def written(folder: Path, state: pytest.MonkeyPatch, **changes: Any) -> Path:
    """Manifest of what the student writes, in two parts."""
    generation = {"backend": "transformers", "decoding_strategy": "sampling", "temperature": 1.0, "top_p": 1.0}
    generation |= {"max_new_tokens": 6, "batch_size": 3, "seed": 0}
    settings = partial(opd={"prompts_per_round": 7, "generation": generation | changes}, **copy.deepcopy(RUN))
    inputs = {"student": folder / "p.json", "corpus": folder / "c" / "t" / "manifest.json"}
    state.setenv("STAGE_UNITS_DIR", str(folder / "written"))
    parts = [folder / "parts" / f"{number}.json" for number in (1, 2)]
    for number, part in enumerate(parts, 1):
        rollout(Arguments(settings, inputs, part, {"part": f"{number}-of-2"}))
    out = folder / "rollouts" / "manifest.json"
    merge_rollouts(Arguments(settings, inputs, out, {}, parts))
    return out


def scored(folder: Path, on: Path, state: pytest.MonkeyPatch) -> Path:
    options = SCORED | {"cache_temperatures": [1.0], "shard_examples": 4, "batch_size": 3, "logprob_cache_path": None}
    settings, inputs = partial(distillation=options, **copy.deepcopy(RUN)), {"teacher": folder / "t.json", "corpus": on}
    state.setenv("STAGE_UNITS_DIR", str(folder / "scored"))
    part, out = folder / "scores" / "1.json", folder / "cache" / "logit_cache" / "manifest.json"
    logit_caching(Arguments(settings, inputs, part, {"part": "1-of-1"}))
    merge_logits(Arguments(settings, inputs, out, {}, [part]))
    return out


def trained(
    folder: Path, on: Path, cache: Path | None, name: str, state: pytest.MonkeyPatch, lora: Any = None, **objective: Any
) -> dict[str, Any]:
    """Weights after a training; without a cache on the corpus alone."""
    state.setenv("STAGE_STATE_DIR", str(folder / f"state-{name}"))
    (folder / f"state-{name}").mkdir()
    fixed = {"token_budget": 60, "batch_size": 2, "dtype": "float32", "eval_steps": None, "num_warmup_steps": 0}
    options = Training(learning_rate=1e-2, lora=lora, **fixed)
    distillation = {"temperature": 1.0, **SCORED, "tail": "ghost", **objective.pop("distillation", {})}
    content = {"experiment": {"seed": 1}, "training": options.model_dump(mode="json"), "model": RUN["model"]}
    settings = partial(**content, distillation=distillation, **objective)
    inputs = {"student": folder / "p.json", "corpus": on}
    inputs |= {"teacher_output": cache, "teacher": folder / "t.json"} if cache else {}
    out = folder / name / "final_model" / "manifest.json"
    student_train(Arguments(settings, inputs, out, {"name": name, "wandb": ""}))
    return AutoModelForCausalLM.from_pretrained(out.parent).state_dict()


def test_one_round_on_the_corpus_is_kd_without_cross_entropy_to_the_bit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on = folder / "c" / "t" / "manifest.json"
    cache = scored(folder, on, monkeypatch)
    kd = trained(folder, on, cache, "kd", monkeypatch, distillation={"alpha": 0.0, "divergence": "forward_kl"})
    opd = trained(folder, on, cache, "opd", monkeypatch, opd={"divergence": "forward_kl"})
    other = trained(folder, on, cache, "reverse", monkeypatch, opd={"divergence": "reverse_kl"})
    start = AutoModelForCausalLM.from_pretrained(folder / "p").state_dict()
    assert all(torch.equal(kd[name], opd[name]) for name in start)
    assert not torch.equal(kd["lm_head.weight"], start["lm_head.weight"])
    assert not torch.equal(kd["lm_head.weight"], other["lm_head.weight"])


def test_a_round_scores_and_trains_on_what_the_student_wrote(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts = written(folder, monkeypatch)
    there, facts = open_artefact(rollouts, "corpus")
    rows, asked = corpus.read_table(there / "train.parquet"), open_artefact(folder / "c" / "t" / "manifest.json", "corpus")
    assert 0 < len(rows) <= 7 and facts["splits"]["train"]["loss_tokens"] == sum(corpus.loss_tokens(row) for row in rows)
    assert {row["example_id"] for row in rows} <= {row["example_id"] for row in corpus.read_table(asked[0] / "train.parquet")}
    assert (
        facts["split_sha256"] == asked[1]["split_sha256"] and facts["splits"]["evaluation"] == asked[1]["splits"]["evaluation"]
    )
    assert facts["corpus_sha256"] != asked[1]["corpus_sha256"]
    cache = scored(folder, rollouts, monkeypatch)
    assert read_json(cache)["corpus_sha256"] == facts["corpus_sha256"]
    weights = trained(folder, rollouts, cache, "opd", monkeypatch, opd={"divergence": "jsd", "beta": 0.3})
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_a_rollout_of_the_end_alone_is_scored_and_trained_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the teacher says of ending at once is what such a student needs."""
    end, silent = read_json(folder / "c" / "t" / "manifest.json")["end_token_id"], []

    def answered(prompt: Prompt, answer: Answer, words: Any) -> dict[str, Any]:
        silent[:] = silent or [prompt.key]
        return answer_row(prompt, Answer(answer.key, [], end) if prompt.key in silent else answer, words)

    monkeypatch.setattr("workflow_scripts.stages.synthetic_generation.answer_row", answered)
    rollouts = written(folder, monkeypatch)
    rows = {row["example_id"]: row for row in corpus.read_table(open_artefact(rollouts, "corpus")[0] / "train.parquet")}
    assert len(rows) == 7 and sum(rows[silent[0]]["loss_mask"]) == 1 and rows[silent[0]]["input_ids"][-1] == end
    cache = scored(folder, rollouts, monkeypatch)
    weights = trained(folder, rollouts, cache, "opd", monkeypatch, opd={"divergence": "reverse_kl"})
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_a_student_that_writes_only_ends_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "p")
    ends = read_json(folder / "c" / "t" / "manifest.json")["end_token_id"]
    with torch.no_grad():
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight.fill_(1.0)
        model.lm_head.weight.zero_()
        model.lm_head.weight[ends] = 1.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    model.save_pretrained(folder / "p")
    with pytest.raises(corpus.CorpusError, match="all 7 rollouts are empty"):
        written(folder, monkeypatch, decoding_strategy="greedy")
