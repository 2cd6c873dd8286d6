"""The teacher's work beside its peers: logits, answers, likelihoods, types, and the real vLLM."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import peers
from benchmarks.measure import REPOSITORY, Row, memory_rate, of_matmul_rate, seconds, side_by_side
from benchmarks.memory import K
from benchmarks.training import Inputs, one
from workflow_scripts.artefact import read_json
from workflow_scripts.distill.generation import Prompt, generate
from workflow_scripts.distill.logit_cache import teacher_rows
from workflow_scripts.distill.models import load_frozen, load_model, load_tokenizer
from workflow_scripts.distill.scoring import log_likelihoods
from workflow_scripts.settings.schema import Generation


def teacher(results: Path) -> Iterator[Row]:
    """Logit caching, generation and scoring with the demo's teacher."""
    inputs = Inputs.read(results, rows=32)
    folder = one(results, "models/*instruct/model")
    model, plain = load_frozen(folder, torch.float32), load_model(folder, torch.float32)
    pad = load_tokenizer(one(results, "models/*instruct/model")).pad_token_id
    rows = sorted(inputs.rows, key=lambda row: len(row["input_ids"]))[:8]
    tokens = sum(len(row["input_ids"]) for row in rows)
    mine, peer, ratio = side_by_side(
        lambda: tokens / seconds(lambda: teacher_rows(model, rows, K, [1.0], pad, 49152)),
        lambda: tokens / seconds(lambda: peers.bare_forward(plain, rows, pad)),
    )
    figures = f"{mine:.0f} against {peer:.0f}{of_matmul_rate(mine, 2 * parameters(model))}"
    yield Row("logit caching, tokens/s", "the bare teacher forward", ratio, ">= 0.9", figures)
    yield from generation(model, plain, inputs, pad)
    yield from scoring(model, plain, inputs, pad)


def parameters(model: torch.nn.Module) -> int:
    """How many parameters the model has; those of packed layers are none of torch's."""
    return int(read_json(Path(model.name_or_path, "manifest.json"))["parameters"])


def generation(model: torch.nn.Module, plain: torch.nn.Module, inputs: Inputs, pad: int) -> Iterator[Row]:
    """Batched generation against one prompt at a time, greedy, no end token, 32 new tokens."""
    prompts = [row["input_ids"][: row["loss_mask"].index(1)] for row in inputs.rows]
    options = Generation(decoding_strategy="greedy", max_new_tokens=32, batch_size=32)
    keyed = [Prompt(number, ids, 0) for number, ids in enumerate(prompts)]

    def ours() -> float:
        made: list[int] = []
        took = seconds(lambda: made.extend(a.generated for part in generate(model, keyed, options, [], pad) for a in part))
        return sum(made) / took

    def theirs() -> float:
        made: list[int] = []
        took = seconds(lambda: made.append(peers.generate_one_by_one(plain, prompts[:6], 32, pad)))
        return sum(made) / took

    mine, peer, ratio = side_by_side(ours, theirs, repeats=3)
    weights = 4 * parameters(model) * mine / 32
    figures = f"{mine:.0f} against {peer:.0f}, batch 32{of_matmul_rate(mine, 2 * parameters(model))}, and the weights "
    figures += f"read at {weights / memory_rate():.0%} of the memory's rate"
    yield Row("generation, tokens/s", "`generate`, one prompt at a time", ratio, ">= 6", figures)


def scoring(model: torch.nn.Module, plain: torch.nn.Module, inputs: Inputs, pad: int) -> Iterator[Row]:
    """Log-likelihoods of answers to prompts, in batches of similar length."""
    rows = sorted(inputs.rows, key=lambda row: len(row["input_ids"]))[:16]
    tokens = sum(len(row["input_ids"]) for row in rows)
    mine, peer, ratio = side_by_side(
        lambda: tokens / seconds(lambda: [log_likelihoods(model, rows[b : b + 8], pad) for b in (0, 8)]),
        lambda: tokens / seconds(lambda: peers.score_one_by_one(plain, rows)),
    )
    figures = f"{mine:.0f} against {peer:.0f}{of_matmul_rate(mine, 2 * parameters(model))}"
    yield Row("preference scoring, tokens/s", "one by one at full vocabulary", ratio, ">= 3", figures)


def bfloat16(results: Path) -> Iterator[Row]:
    """The demo's teacher in bfloat16 against float32: forward passes of a logit cache, and generation."""
    folder = one(results, "models/*instruct/model")
    half, whole = (load_frozen(folder, dtype) for dtype in (torch.bfloat16, torch.float32))
    yield from inference(results, half, whole, " in bfloat16", "float32", ">= 1.7")


def packed(results: Path) -> Iterator[Row]:
    """The demo's teacher in float32 with its weights packed for oneDNN against plain layers, on the same work."""
    folder = one(results, "models/*instruct/model")
    ours, plain = load_frozen(folder, torch.float32), load_model(folder, torch.float32)
    yield from inference(results, ours, plain, " with packed weights", "`torch.nn.Linear`", ">= 1.1")


def inference(results: Path, ours: torch.nn.Module, theirs: torch.nn.Module, how: str, peer: str, wanted: str) -> Iterator[Row]:
    """Logit caching and greedy generation, batch 32, with two models."""
    inputs = Inputs.read(results, rows=32)
    pad, rows = inputs.tokenizer.pad_token_id, sorted(inputs.rows, key=lambda row: len(row["input_ids"]))[:8]
    tokens = sum(len(row["input_ids"]) for row in rows)

    def cached(model: torch.nn.Module) -> float:
        return tokens / seconds(lambda: teacher_rows(model, rows, K, [1.0], pad, 49152))

    fast, slow, ratio = side_by_side(lambda: cached(ours), lambda: cached(theirs))
    yield Row(f"logit caching{how}, tokens/s", peer, ratio, wanted, f"{fast:.0f} against {slow:.0f}")
    prompts = [row["input_ids"][: row["loss_mask"].index(1)] for row in inputs.rows]
    options = Generation(decoding_strategy="greedy", max_new_tokens=32, batch_size=32)
    batch = [Prompt(number, ids, number) for number, ids in enumerate(prompts)]

    def written(model: torch.nn.Module) -> float:
        return 32 * len(batch) / seconds(lambda: list(generate(model, batch, options, [-1], pad)))

    fast, slow, ratio = side_by_side(lambda: written(ours), lambda: written(theirs), repeats=3)
    yield Row(f"generation{how}, tokens/s", peer, ratio, wanted, f"{fast:.0f} against {slow:.0f}, batch 32")


def vllm(results: Path) -> Iterator[Row]:
    """Greedy answers to 56 prompts, models loaded, against the real vLLM of VLLM_PYTHON in the same type."""
    if not (python := os.environ.get("VLLM_PYTHON")):
        print("vllm: not measured, VLLM_PYTHON is not set (envs/requirements-vllm.txt)", file=sys.stderr)
        return
    inputs, folder = Inputs.read(results, rows=56), one(results, "models/*instruct/model")
    prompts = [row["input_ids"][: row["loss_mask"].index(1)] for row in inputs.rows]
    options = Generation(decoding_strategy="greedy", max_new_tokens=64, batch_size=64)  # vLLM has all at once, too
    keyed, pad = [Prompt(number, ids, number) for number, ids in enumerate(prompts)], inputs.tokenizer.pad_token_id
    for dtype in ("float32", "bfloat16"):
        model = load_frozen(folder, getattr(torch, dtype))

        def ours(model: torch.nn.Module = model) -> float:
            made: list[int] = []
            batches = generate(model, keyed, options, [inputs.tokenizer.eos_token_id], pad)
            took = seconds(lambda: made.extend(answer.generated for batch in batches for answer in batch))
            return sum(made) / took

        with tempfile.TemporaryDirectory() as name:
            asked, out, log = (Path(name, file) for file in ("prompts.json", "out.json", "log"))
            asked.write_text(json.dumps(prompts))
            command = [python, "-m", "benchmarks.vllm_peer", folder, asked, out, "--dtype", dtype]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log.open("w")}
            with subprocess.Popen(command, cwd=REPOSITORY, text=True, bufsize=1, **pipes) as peer:

                def theirs(peer: subprocess.Popen[str] = peer, out: Path = out, log: Path = log) -> float:
                    with contextlib.suppress(BrokenPipeError):  # it has ended: said below
                        os.write(peer.stdin.fileno(), b"\n")
                    told = next((line for line in peer.stdout or () if line.startswith("seconds ")), None)
                    if told is None:
                        raise RuntimeError(f"{' '.join(map(str, peer.args))} ended:\n{log.read_text()[-2000:]}")
                    took = float(told.split()[1])
                    return sum(map(len, json.loads(out.read_text()))) / took

                mine, other, ratio = side_by_side(ours, theirs)
                peer.communicate()
        figures = f"{mine:.0f} against {other:.0f}, prompts read anew"
        yield Row(f"generation in {dtype}, tokens/s", "vLLM on the CPU", ratio, ">= 0.9", figures)
