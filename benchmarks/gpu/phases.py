"""One phase of the run, as the child of a meter: times its windows and says when they were, so that joules can be told.

    python -m benchmarks.gpu.phases PHASE --scale real|toy --work DIR

Appends a line to DIR/windows.jsonl for each window. What does not fit in memory is a line with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import peers
from benchmarks.gpu.shapes import EOS, PAD, SCALES, Scale, build, chat_rows, forward_flops, tokenizer
from benchmarks.memory import field
from benchmarks.training import Inputs, timed
from workflow_scripts.artefact import open_artefact, publish
from workflow_scripts.distill import logit_cache
from workflow_scripts.distill.batching import by_length
from workflow_scripts.distill.corpus import loss_tokens
from workflow_scripts.distill.generation import Prompt, generate
from workflow_scripts.distill.losses import KdLoss, SparseTeacher, fused_distillation_loss
from workflow_scripts.distill.scoring import log_likelihoods
from workflow_scripts.settings.schema import Generation, Training

K = 64
Rows = Sequence[dict[str, Any]]


@dataclass
class Counted:
    """What a window did: tokens (padding left out), useful FLOPs; its own times where not all of it counts."""

    tokens: int = 0
    flops: float = 0.0
    start_time: float | None = None
    seconds: float | None = None

    def add(self, tokens: int, flops: float) -> None:
        self.tokens += tokens
        self.flops += flops


class Windows:
    """Writes the lines of one phase."""

    def __init__(self, path: Path, phase: str) -> None:
        self._path, self._phase = path, phase

    @contextlib.contextmanager
    def measure(self, name: str, peer_of: str | None = None, whole: bool = False) -> Iterator[Counted]:
        """Time what stands inside; `peer_of` names the window that this one is the other side of.

        `whole`: all that the work needs is made inside, so on a GPU its peak is counted beyond what was allocated before.
        Resident memory is not given back, so without a GPU the peak is that of the process.
        """
        counted, reason = Counted(), None
        _reset_peak()
        base = _memory()
        start_time, began = time.time(), time.perf_counter()
        try:
            yield counted
            _wait()
        except torch.OutOfMemoryError as error:
            reason = f"out of memory: {str(error).splitlines()[0]}"
        seconds = time.perf_counter() - began
        line = {
            "phase": self._phase,
            "name": name,
            "peer_of": peer_of,
            "tokens": counted.tokens,
            "flops": counted.flops,
            "start_time": counted.start_time or start_time,
            "seconds": counted.seconds or seconds,
            "peak_bytes": _peak() - base if whole and torch.cuda.is_available() else _peak(),
            "reason": reason,
        }
        with self._path.open("a") as handle:
            handle.write(json.dumps(line) + "\n")
        print(f"{name}: {line['tokens'] / line['seconds']:.0f} tokens/s" if reason is None else f"{name}: {reason}", flush=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def repeat(least_s: float, work: Callable[[], object]) -> int:
    """Do the work again and again for at least so long; returns how often."""
    began, times = time.perf_counter(), 0
    while times == 0 or time.perf_counter() - began < least_s:
        work()
        _wait()
        times += 1
    return times


def caching(scale: Scale, windows: Windows, work: Path) -> None:
    """The teacher's logits: top k and draws against the bare forward and the first system's way."""
    model = build(scale.teacher, getattr(torch, scale.dtype))
    rows = chat_rows(scale)
    batches = by_length(rows, scale.batch, lambda row: len(row["input_ids"]))
    vocabulary = scale.teacher.vocab_size
    logit_cache.teacher_rows(model, batches[0], K, [1.0], PAD, vocabulary)  # warm up

    def top_k() -> logit_cache.Shard:
        return logit_cache.Shard.join([logit_cache.teacher_rows(model, b, K, [1.0], PAD, vocabulary) for b in batches])

    def drawn() -> None:
        for batch in batches:
            logit_cache.drawn_rows(model, batch, 50, 0, [1.0], PAD, vocabulary)

    def bare() -> None:
        for batch in batches:
            peers.bare_forward(model, batch, PAD)

    ours = "logit caching, top 64"
    _window(windows, scale, ours, None, rows, top_k)
    _window(windows, scale, "logit caching, 50 draws", None, rows, drawn)
    _window(windows, scale, "bare teacher forward", ours, rows, bare)
    few = rows[: scale.batch]
    with windows.measure("first system's caching (padded, top 100, lists)", ours) as counted:
        peers.first_system_cache(model, few, work / "first_system", scale.longest, PAD)
        counted.add(*_work(scale, few))
    build_dir = work / ".cache.build"
    build_dir.mkdir()
    logit_cache.write_shard(build_dir / "shard-00000.safetensors", top_k(), vocabulary)
    facts = {"format": "top_k/2", "k": K, "temperatures": [1.0], "shards": [{"file": "shard-00000.safetensors"}]}
    publish(build_dir, work / "cache" / "manifest.json", "logit_cache", facts)


def training(scale: Scale, windows: Windows, work: Path) -> None:
    """Steps of the student: KD and SFT with and without gradient checkpointing, stock SFT, the first system's loop, DPO."""
    rows = chat_rows(scale)
    cache = logit_cache.LogitCache(*open_artefact(work / "cache" / "manifest.json", "logit_cache"))
    inputs = Inputs(build(scale.student, torch.float32), tokenizer(), list(rows), cache)
    kd = "KD training"
    for checkpointing in (False, True):
        tail = ", gradient checkpointing" if checkpointing else ""
        _steps(scale, windows, f"{kd}{tail}", None, "kd", inputs, checkpointing)
        _steps(scale, windows, f"SFT training{tail}", f"{kd}{tail}", "sft", inputs, checkpointing)
    for which, name in (("stock", "Hugging Face Trainer"), ("trl", "TRL")):
        _steps(scale, windows, f"stock SFT ({name})", kd, which, inputs, False)
    full = peers.padded(rows, scale.longest, PAD)
    _steps(scale, windows, f"SFT on rows padded to {scale.longest}", "SFT training", "sft", inputs, False, full)
    with windows.measure("first system's KD loop (padded, all logits)", kd, whole=True) as counted:
        loop = peers.FirstSystemTraining(build(scale.student, torch.float32), getattr(torch, scale.dtype), scale.longest, PAD)
        few = [rows[b : b + scale.train_batch // 2] for b in range(0, len(rows) // 4, scale.train_batch // 2)]
        loop.step(few[0])
        counted.start_time, began = time.time(), time.perf_counter()
        for batch in few:
            loop.step(batch)
            counted.add(*_work(scale, batch, scale.student, passes=3))
        _wait()
        counted.seconds = time.perf_counter() - began
        del loop
    pairs = [_pair(row, other) for row, other in zip(rows, rows[1:] + rows[:1], strict=True)]
    for checkpointing in (False, True):
        tail = ", gradient checkpointing" if checkpointing else ""
        _steps(scale, windows, f"DPO training{tail}", None, "dpo", inputs, checkpointing, pairs)


def generation(scale: Scale, windows: Windows, work: Path) -> None:
    """Writing and scoring with the teacher, in batches against one by one."""
    model = build(scale.teacher, getattr(torch, scale.dtype))
    rows = chat_rows(scale)[: scale.prompts]
    prompts = [Prompt(row["example_id"], row["input_ids"][: row["loss_mask"].index(1)], row["example_id"]) for row in rows]
    options = Generation(max_new_tokens=scale.new_tokens, batch_size=scale.prompts, temperature=1.0, top_p=0.95)
    weights = forward_flops(scale.teacher, [1], 1)

    def ours(count: int, batch: int, new: int) -> int:
        chosen = options.model_copy(update={"batch_size": batch, "max_new_tokens": new})
        return sum(a.generated for part in generate(model, prompts[:count], chosen, [], PAD) for a in part)

    ours(2, 2, 2)  # warm up
    with windows.measure(f"generation, batch {scale.prompts}") as counted:
        made = ours(scale.prompts, scale.prompts, scale.new_tokens)
        counted.add(made, made * weights + forward_flops(scale.teacher, [len(p.input_ids) for p in prompts], 0))
    with windows.measure("`generate`, one prompt at a time", f"generation, batch {scale.prompts}") as counted:
        few = [prompt.input_ids for prompt in prompts[: scale.one_by_one]]
        made = peers.generate_one_by_one(model, few, scale.new_tokens, PAD)
        counted.add(made, made * weights + forward_flops(scale.teacher, [len(ids) for ids in few], 0))
    batches = by_length(rows, scale.batch, lambda row: len(row["input_ids"]))
    log_likelihoods(model, batches[-1], PAD)
    _window(windows, scale, "preference scoring", None, rows, lambda: [log_likelihoods(model, b, PAD) for b in batches])
    with windows.measure("scoring one by one, all logits", "preference scoring") as counted:
        few = rows[: 2 * scale.one_by_one]
        peers.score_one_by_one(model, few)
        counted.add(*_work(scale, few))


def loss(scale: Scale, windows: Windows, work: Path) -> None:
    """KD loss and backward alone, at the student's width and vocabulary, against dense KL."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    n, d, v = scale.loss_positions, scale.student.hidden_size, scale.student.vocab_size
    torch.manual_seed(0)
    hidden = torch.randn(n, d, device=device, dtype=getattr(torch, scale.dtype), requires_grad=True)
    weight = (0.02 * torch.randn(v, d, device=device)).to(hidden.dtype).requires_grad_()
    targets = torch.randint(v, (n,), device=device)
    logits = torch.randn(n, K, device=device).sort(-1, descending=True).values
    ids = torch.argsort(torch.rand(n, 4 * K, device=device), -1)[:, :K] * (v // (4 * K))  # distinct
    teacher = SparseTeacher(ids, logits, torch.logsumexp(logits, -1) - 2)

    def fused() -> None:
        fused_distillation_loss(hidden, weight, targets, teacher, KdLoss(0.5)).total.backward()

    dense_teacher: list[torch.Tensor] = []

    def dense() -> None:
        peers.dense_loss(hidden, weight, targets, dense_teacher[0], 0.5).backward()

    for name, peer_of, run in (
        ("KD loss + backward, fused", None, fused),
        ("dense KL in torch", "KD loss + backward, fused", dense),
    ):
        with windows.measure(name, peer_of, whole=True) as counted:
            if run is dense:  # its teacher's logits are no input of ours, so they count
                dense_teacher.append(torch.randn(n, v, device=device, dtype=hidden.dtype))
            run()
            _wait()
            counted.start_time, began = time.time(), time.perf_counter()
            times = repeat(scale.least_s, run)
            counted.seconds = time.perf_counter() - began
            counted.add(times * n, times * 6.0 * n * v * d)


PHASES: dict[str, Callable[[Scale, Windows, Path], None]] = {f.__name__: f for f in (caching, training, generation, loss)}


def _window(windows: Windows, scale: Scale, name: str, peer_of: str | None, rows: Rows, run: Callable[[], object]) -> None:
    """Repeated passes of the teacher over rows."""
    with windows.measure(name, peer_of) as counted:
        times = repeat(scale.least_s, run)
        tokens, flops = _work(scale, rows)
        counted.add(times * tokens, times * flops)


def _work(scale: Scale, rows: Rows, shape: Any = None, passes: int = 1) -> tuple[int, float]:
    """Tokens of rows, and FLOPs of some passes over them (a training step is three)."""
    lengths = [len(row["input_ids"]) for row in rows]
    return sum(lengths), passes * forward_flops(shape or scale.teacher, lengths, sum(loss_tokens(row) for row in rows))


def _steps(
    scale: Scale,
    windows: Windows,
    name: str,
    peer_of: str | None,
    which: str,
    inputs: Inputs,
    checkpointing: bool,
    rows: Rows | None = None,
) -> None:
    """Optimizer steps of one trainer, the first two left out."""
    options = Training(
        token_budget=1,
        batch_size=scale.train_batch if which != "dpo" else scale.train_batch // 2,
        learning_rate=1e-5,
        dtype=scale.dtype,  # type: ignore[arg-type]
        gradient_checkpointing=checkpointing,
    )
    with windows.measure(name, peer_of, whole=True) as counted:
        clock, order = timed(which, inputs, options, scale.steps, rows)
        counted.start_time, counted.seconds = clock.began[2], sum(clock.seconds[2:])
        for number in order[2 * options.batch_size :]:
            row: dict[str, Any] = inputs.rows[number]
            if which == "dpo" and rows is not None:
                for side in ("chosen_ids", "rejected_ids"):
                    prompt, completion = rows[number]["prompt_ids"], rows[number][side]
                    flops = forward_flops(scale.student, [len(prompt) + len(completion)], len(completion))
                    counted.add(len(prompt) + len(completion), 3 * flops)
            else:
                counted.add(*_work(scale, [row], scale.student, passes=3))


def _pair(row: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A preference pair: the row's prompt with its own and another row's completion."""
    cut, others = row["loss_mask"].index(1), other["loss_mask"].index(1)
    return {
        "prompt_ids": row["input_ids"][:cut],
        "chosen_ids": [*row["input_ids"][cut:], EOS],
        "rejected_ids": [*other["input_ids"][others:], EOS],
    }


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _memory() -> int:
    """Memory in use now [bytes]: allocated on the accelerator, else resident."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else int(field("VmRSS") * 2**20)


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else int(field("VmHWM") * 2**20)


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):  # without it, peaks are those since the process began
        Path("/proc/self/clear_refs").write_text("5")


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.phases", allow_abbrev=False)
    parser.add_argument("phase", choices=list(PHASES))
    parser.add_argument("--scale", choices=list(SCALES), required=True)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    PHASES[options.phase](SCALES[options.scale], Windows(options.work / "windows.jsonl", options.phase), options.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
