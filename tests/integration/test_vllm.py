"""Our generation against the real vLLM on a CPU: the same greedy answers up to the first tie.

VLLM_PYTHON names the Python of an environment that is made from envs/requirements-vllm.txt.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from tests.conftest import REPOSITORY, Workflow
from workflow_scripts.distill.corpus import read_table
from workflow_scripts.distill.generation import Prompt, generate
from workflow_scripts.distill.models import load_model, load_tokenizer
from workflow_scripts.settings.schema import Generation

PYTHON = os.environ.get("VLLM_PYTHON")
NEW, TIE = 24, 1e-3  # new tokens; logits nearer than this may come out in either order


@pytest.mark.skipif(not PYTHON, reason="no VLLM_PYTHON: an environment made from envs/requirements-vllm.txt")
def test_greedy_answers_are_those_of_vllm_up_to_the_first_tie(tiny_run: Workflow, tmp_path: Path) -> None:
    folder = tiny_run.path("results/models/*instruct/model/manifest.json").parent
    rows = read_table(tiny_run.path("results/corpus/*/dataset/train.parquet"))[:6]
    prompts = [row["input_ids"][: row["loss_mask"].index(1)] for row in rows]
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    command = [str(PYTHON), "-m", "benchmarks.vllm_peer", str(folder), "prompts.json", "out.json", f"--new={NEW}"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    theirs = json.loads((tmp_path / "out.json").read_text())

    model, tokenizer = load_model(folder, torch.float32), load_tokenizer(folder)
    options = Generation(decoding_strategy="greedy", max_new_tokens=NEW, batch_size=8)
    asked = [Prompt(n, ids, n) for n, ids in enumerate(prompts)]
    answers = {
        a.key: a for batch in generate(model, asked, options, [tokenizer.eos_token_id], tokenizer.pad_token_id) for a in batch
    }
    equal = 0
    for number, prompt in enumerate(prompts):
        ours = answers[number].completion
        at = next((i for i, (a, b) in enumerate(zip(ours, theirs[number], strict=False)) if a != b), None)
        equal += at is None and len(ours) == len(theirs[number])
        if at is not None:
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *ours[:at]]])).logits[0, -1]
            assert (logits[ours[at]] - logits[theirs[number][at]]).abs() < TIE
    assert equal >= len(prompts) // 2
