"""How near to the hardware's limit the program runs: each line a ratio of two things measured in turn in one run.

    python -m benchmarks.speed [--results DIR] [--only NAME ...] [--out FILE.json]

DIR holds a finished `make demo` (model, rows, logit cache). Prints a Markdown table; medians of five after a warm-up. Beside a
figure stands the share that it is of a physical bound, where there is one: the machine's rate of matrix products for what
multiplies (2 FLOPs per parameter and token forward, 6 for a training), the rate of memory or files for what moves bytes.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
import yaml

from benchmarks import peers
from benchmarks.inference import bfloat16, packed, teacher, vllm
from benchmarks.measure import (
    REPOSITORY,
    Row,
    alone,
    file_seconds,
    matmul_rate,
    of_matmul_rate,
    run_and_weigh,
    seconds,
    side_by_side,
)
from benchmarks.memory import HIDDEN, K, loss_inputs
from benchmarks.training import Inputs, on_policy_losses, train
from workflow_scripts.distill.logit_cache import LogitCache, Shard, teacher_rows, write_shard
from workflow_scripts.distill.losses import KdLoss, fused_distillation_loss
from workflow_scripts.distill.order import training_order
from workflow_scripts.energy.child import HEAP

OLMO_VOCABULARY = 100_352
FIRST_SYSTEM_BYTES = 1608  # per position: k = 100 as int64 and float64, and the row's offsets


def trainings(results: Path) -> Iterator[Row]:
    """KD against stock SFT and against our own SFT, and against rows padded to 1,024."""
    inputs = Inputs.read(results, rows=40)
    run = functools.partial(train, inputs=inputs, batch=8, steps=4)
    stock = {which: run(which) for which in ("stock", "trl")}
    faster = max(stock, key=lambda which: stock[which])
    share = functools.partial(of_matmul_rate, flops=6 * inputs.student.num_parameters())
    kd, peer, ratio = side_by_side(lambda: run("kd"), lambda: run(faster))
    names = {"stock": "the Hugging Face Trainer's stock SFT", "trl": "TRL's stock SFT"}
    slower = f" ({names['trl' if faster == 'stock' else 'stock']}: {min(stock.values()):.0f})"
    yield Row("KD training, tokens/s", names[faster] + slower, ratio, ">= 1.05", f"{kd:.0f} against {peer:.0f}{share(kd)}")
    kd, sft, ratio = side_by_side(lambda: run("kd"), lambda: run("sft"))
    yield Row(
        "KD training, tokens/s", "our SFT on the same fused loss", ratio, ">= 0.97", f"{kd:.0f} against {sft:.0f}{share(kd)}"
    )
    few = functools.partial(train, inputs=Inputs.read(results, rows=16), batch=8, steps=2)
    full = peers.padded(inputs.rows[:16], 1024, inputs.tokenizer.pad_token_id)
    ours, theirs, ratio = side_by_side(lambda: few("sft"), lambda: few("sft", padded_rows=full), repeats=3)
    mean = sum(len(row["input_ids"]) for row in inputs.rows) / len(inputs.rows)
    figures = f"{ours:.0f} against {theirs:.0f} (rows of {mean:.0f} tokens){share(ours)}"
    yield Row("training on real chat rows, tokens/s", "the same rows padded to 1,024", ratio, ">= 2", figures)


def packing(results: Path) -> Iterator[Row]:
    """Our KD with packed rows against padded ones, both in the order of a stage (rows of similar length together)."""
    inputs = Inputs.read(results, rows=40)
    run = functools.partial(train, "kd", inputs, batch=8, steps=3, by_length=True)
    packed, padded, ratio = side_by_side(lambda: run(), lambda: run(packing=False))
    lengths = [len(row["input_ids"]) for row in inputs.rows]
    order = training_order(lengths, lengths, 10**9, 1, 8, 0)
    batches = [[lengths[i] for i in order[b : b + 8]] for b in range(0, len(order), 8)]
    share = 1 - sum(lengths) / sum(max(batch) * len(batch) for batch in batches)
    figures = f"{packed:.0f} against {padded:.0f}; {share:.0%} of the padded positions are padding"
    yield Row("KD training with packed rows, tokens/s", "the same batches padded", ratio, ">= 1", figures)


def compilation(results: Path) -> Iterator[Row]:
    """Our KD with compiled layers against not, after the first step, in which they are compiled."""
    inputs = Inputs.read(results, rows=40)
    run = functools.partial(train, "kd", inputs, batch=8, steps=3, by_length=True)
    compiled, plain, ratio = side_by_side(lambda: run(compiled=True), lambda: run())
    figures = f"{compiled:.0f} against {plain:.0f}"
    yield Row("KD training with compiled layers, tokens/s", "not compiled", ratio, ">= 1", figures)


def adapters(results: Path) -> Iterator[Row]:
    """KD of adapters (training.lora's defaults) against KD of all weights: tokens/s, and peak memory of a step."""
    run = functools.partial(train, inputs=Inputs.read(results, rows=40), batch=8, steps=4)
    lora, full, ratio = side_by_side(lambda: run("kd_lora"), lambda: run("kd"))
    yield Row("KD training of adapters, tokens/s", "of all weights", ratio, ">= 1.2", f"{lora:.0f} against {full:.0f}")
    for rows in (16, 1):
        few, all_of_them = (alone("beyond", which, results.absolute(), rows, **HEAP) for which in ("kd_lora", "kd"))
        name = f"KD training of adapters, peak memory beyond the libraries, {256 * rows:,} tokens a step"
        yield Row(name, "the same", few / all_of_them, "<= 0.6", f"{few:.0f} against {all_of_them:.0f} MB")


def heap(results: Path) -> Iterator[Row]:
    """KD training with the glibc tunables that the meter sets where there is no GPU, against without."""
    run = functools.partial(alone, "rate", "kd", results.absolute(), 40)
    ours, plain, ratio = side_by_side(lambda: run(**HEAP), run, repeats=3)
    yield Row(
        "KD training with the meter's glibc tunables, tokens/s", "without", ratio, ">= 1", f"{ours:.0f} against {plain:.0f}"
    )


def training_memory(results: Path) -> Iterator[Row]:
    """Peak memory of one step of 4,096 tokens."""
    ours, theirs = (alone("step", which, results.absolute(), 16) for which in ("kd", "stock"))
    figures = f"{ours:.0f} against {theirs:.0f} MB"
    yield Row("KD training, peak memory, 4,096 tokens a step", "stock SFT", ours / theirs, "<= 0.75", figures)


def on_policy(results: Path) -> Iterator[Row]:
    """A training on rollouts against TRL's, whose step asks the teacher; with our scoring added; reverse against forward KL."""
    inputs = Inputs.rollouts(results, rows=24, teacher=True)
    run = functools.partial(train, inputs=inputs, batch=8, steps=3)
    tokens = sum(len(row["input_ids"]) for row in inputs.rows)
    ours, theirs, ratio = side_by_side(lambda: run("opd"), lambda: run("trl_opd"))
    peer = "TRL's DistillationTrainer, the same rollouts"
    yield Row("OPD training, tokens/s", peer, ratio, ">= 1.3", f"{ours:.0f} against {theirs:.0f}, whose step asks the teacher")
    vocabulary, pad = len(inputs.tokenizer), inputs.tokenizer.pad_token_id

    def score() -> None:
        for begin in range(0, 24, 8):
            teacher_rows(inputs.teacher, inputs.rows[begin : begin + 8], K, [1.0], pad, vocabulary)

    both, theirs, ratio = side_by_side(
        lambda: tokens / (tokens / run("opd") + seconds(score)), lambda: run("trl_opd"), repeats=3
    )
    yield Row("OPD scoring and training, tokens/s", peer, ratio, ">= 1", f"{both:.0f} against {theirs:.0f}")
    mine, other = on_policy_losses(inputs)
    yield Row("OPD loss, k = V: relative difference", peer, abs(mine / other - 1), "<= 1e-5", f"{mine:.7f} against {other:.7f}")
    peaks = [alone("step", which, results.absolute(), 16) for which in ("opd", "trl_opd")]
    figures = f"{peaks[0]:.0f} against {peaks[1]:.0f} MB"
    yield Row("OPD training, peak memory, 16 rollouts", peer, peaks[0] / peaks[1], "<= 0.7", figures)
    reverse, forward, ratio = side_by_side(lambda: run("kd_reverse"), lambda: run("kd"))
    yield Row("KD training with reverse KL, tokens/s", "forward KL", ratio, ">= 0.95", f"{reverse:.0f} against {forward:.0f}")


def loss(results: Path) -> Iterator[Row]:
    """KD loss and backward alone, from hidden states, at OLMo-2's vocabulary."""
    positions = 8192 if os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") > 40e9 else 4096
    hidden, weight, targets, teacher = loss_inputs(positions, OLMO_VOCABULARY)
    dense = torch.randn(positions, OLMO_VOCABULARY)

    def ours() -> float:
        return seconds(lambda: fused_distillation_loss(hidden, weight, targets, teacher, KdLoss(0.5)).total.backward())

    def theirs() -> float:
        return seconds(lambda: peers.dense_loss(hidden, weight, targets, dense, 0.5).backward())

    mine, peer, ratio = side_by_side(ours, theirs)
    flops = 6 * positions * OLMO_VOCABULARY * HIDDEN
    share = flops / mine / matmul_rate()
    what = f"KD loss + backward, V = 100,352, {positions} positions, k = {K}, hidden {HIDDEN}"
    figures = f"{mine:.2f} against {peer:.2f} s; the three products of the head at {share:.0%} of the machine's matmul rate"
    yield Row(f"{what}: time", "dense KL in torch", ratio, "<= 0.5", figures)
    memory = [alone("loss", which, positions, OLMO_VOCABULARY) for which in ("fused", "dense")]
    figures = f"{memory[0]:.0f} against {memory[1]:.0f} MB"
    yield Row(f"{what}: memory", "dense KL in torch", memory[0] / memory[1], "<= 0.1", figures)


def cache(results: Path) -> Iterator[Row]:
    """Bytes per position, and write + read, at OLMo-2's vocabulary."""
    examples, length = 64, 160
    positions = examples * length
    torch.manual_seed(0)
    ids = torch.randint(OLMO_VOCABULARY, (examples, length, 100))
    logits = torch.randn(examples, length, 100)
    order = torch.randperm(examples).tolist()
    folder = Path(tempfile.mkdtemp())
    flat = Shard(
        list(range(examples)),
        [length] * examples,
        ids[..., :K].reshape(-1, K).contiguous(),
        logits[..., :K].reshape(-1, K).to(torch.bfloat16).contiguous(),
        torch.randn(positions, 1),
    )
    facts = {"format": "top_k/2", "shards": [{"file": "shard.safetensors"}], "temperatures": [1.0], "k": K}

    def ours() -> float:
        def both() -> None:
            write_shard(folder / "shard.safetensors", flat, OLMO_VOCABULARY)
            reader = LogitCache(folder, facts, verify=False)
            assert sum(len(reader.teacher(i, 1.0, length).rest) for i in order) == positions

        return positions / seconds(both)

    def theirs() -> float:
        def both() -> None:
            peers.write_lists(folder / "lists", ids, logits.double())
            assert peers.read_lists(folder / "lists", order) == positions

        return positions / seconds(both)

    mine, peer, ratio = side_by_side(ours, theirs)
    size = (folder / "shard.safetensors").stat().st_size / positions
    plain = file_seconds(folder / "plain", (folder / "shard.safetensors").read_bytes()) / positions
    shutil.rmtree(folder)
    yield Row(
        "logit cache, bytes per position, k = 64, V = 100,352",
        f"{FIRST_SYSTEM_BYTES} (first system, k = 100)",
        size / FIRST_SYSTEM_BYTES,
        f"<= {280 / FIRST_SYSTEM_BYTES:.4f}",
        f"{size:.1f} against {FIRST_SYSTEM_BYTES} B",
    )
    figures = f"{mine / 1000:.0f} against {peer / 1000:.0f} thousand positions/s; at {mine * plain:.0%} of "
    figures += "the rate at which the same bytes are written and read as one plain file"
    yield Row("cache write + read, positions/s", "data sets from Python lists", ratio, ">= 20", figures)


def copied_workflow(folder: Path) -> Path:
    """The workflow's files in a folder without results."""
    for part in ("Snakefile", "rules", "workflow_scripts", "config", "envs", "profiles"):
        source = REPOSITORY / part
        shutil.copytree(source, folder / part) if source.is_dir() else shutil.copy(source, folder / part)
    return folder


def plan(results: Path) -> Iterator[Row]:
    """`snakemake -n` with 200 experiments against 4: seconds, and per experiment."""
    with tempfile.TemporaryDirectory() as name:
        folder = copied_workflow(Path(name))
        template = yaml.safe_load((folder / "config/experiments/demo_kd.yaml").read_text())
        extra = [f"many_{number:03d}" for number in range(196)]

        def dry(names: list[str]) -> float:
            overlay = {"comparison": {"experiments": names, "baseline": "demo_baseline"}}
            (folder / "set.yaml").write_text(yaml.safe_dump(overlay))
            command = [sys.executable, "-m", "snakemake", "-n", "--quiet", "all", "--configfile", "set.yaml"]
            return seconds(lambda: subprocess.run(command, cwd=folder, check=True, capture_output=True))

        four = ["demo_baseline", "demo_kd", "demo_sft", "demo_dpo"]
        small = [dry(four) for _ in range(3)]
        for number, experiment in enumerate(extra):
            own = template | {"training": template.get("training", {}) | {"learning_rate": 1e-4 * (1 + number / 1000)}}
            (folder / f"config/experiments/{experiment}.yaml").write_text(yaml.safe_dump(own))
        large = [dry([*four, *extra]) for _ in range(3)]
        figures = f"{min(large):.1f} s with 200 experiments, {min(small):.1f} s with 4"
        yield Row("`snakemake -n`, 200 experiments [s]", "10 s", min(large), "<= 10", figures)


def demo(results: Path) -> Iterator[Row]:
    """The whole demo in a fresh folder, downloads and environment there already: minutes, and memory of all its processes."""
    with tempfile.TemporaryDirectory() as name:
        folder = copied_workflow(Path(name))
        if (results / "downloads").is_dir():
            shutil.copytree(results / "downloads", folder / "results" / "downloads")
        took, most = run_and_weigh(
            [sys.executable, "-m", "snakemake", "--cores", str(os.cpu_count()), "--quiet", "all"], folder
        )
    yield Row("whole demo [min]", "4 min", took / 60, "<= 4", f"{took:.0f} s")
    yield Row(
        "whole demo, memory at its peak [GB]", "3.5 GB", most / 1e9, "<= 3.5", "resident, shared pages counted once a process"
    )


PARTS: dict[str, Callable[[Path], Iterator[Row]]] = {
    part.__name__: part
    for part in (
        *(trainings, on_policy, adapters, heap, bfloat16, packed, packing, compilation),
        *(training_memory, loss, teacher, vllm, cache, plan, demo),
    )
}


def machine() -> str:
    """What the figures were measured on."""
    model = next((x.split(": ")[1] for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), "?")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return (
        f"{os.cpu_count()} cores ({model.strip()}), {memory:.0f} GB, torch {torch.__version__}, Python "
        f"{platform.python_version()}, float32 matmul {matmul_rate() / 1e9:.0f} GFLOP/s"
    )


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", allow_abbrev=False)
    parser.add_argument("--results", type=Path, default=REPOSITORY / "results")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    print(f"{machine()}\n\n| what | against | ratio | wanted | reached | figures |\n|---|---|---|---|---|---|", flush=True)
    rows = []
    for name in options.only:
        for row in PARTS[name](options.results):
            rows.append(asdict(row) | {"reached": row.reached})
            verdict = "yes" if row.reached else "**no**"
            print(f"| {row.name} | {row.against} | {row.ratio:.3g} | {row.wanted} | {verdict} | {row.figures} |", flush=True)
    if options.out:
        options.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
