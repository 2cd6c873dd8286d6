"""Answers of the real vLLM, in an environment of its own: the peer of our generation in a test and in the table.

    VLLM_PYTHON -m benchmarks.vllm_peer MODEL PROMPTS.json OUT.json [--dtype float32] [--new 64]

PROMPTS.json is a list of lists of token ids. OUT.json gets the tokens of each greedy answer, end token included. For each
line of standard input all prompts are answered again, and `seconds S` is printed; vLLM's prefix cache is
emptied before, so that it reads the prompts as we do. The environment is made from envs/requirements-vllm.txt.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GB

import torch
from transformers import AutoConfig

from workflow_scripts.distill.backends import VllmBackend
from workflow_scripts.distill.generation import Prompt
from workflow_scripts.settings.schema import Generation


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vllm_peer", allow_abbrev=False)
    for name in ("model", "prompts", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--new", type=int, default=64)
    options = parser.parse_args()
    prompts = [Prompt(n, ids, n) for n, ids in enumerate(json.loads(options.prompts.read_text()))]
    ends = AutoConfig.from_pretrained(options.model, local_files_only=True).eos_token_id
    write = VllmBackend(
        Generation(backend="vllm", decoding_strategy="greedy", max_new_tokens=options.new),
        options.model,
        getattr(torch, options.dtype),
        max(len(prompt.input_ids) for prompt in prompts) + options.new,
        ends if isinstance(ends, list) else [ends],
        0.5,
    )
    (answers,) = write(prompts)
    options.out.write_text(json.dumps([answer.completion for answer in sorted(answers, key=lambda answer: answer.key)]))
    for _ in sys.stdin:
        if not write.engine.reset_prefix_cache():
            raise RuntimeError("vLLM kept the prompts of the answers before")
        begun = time.perf_counter()
        list(write(prompts))
        print("seconds", time.perf_counter() - begun, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
