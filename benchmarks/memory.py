"""One thing measured in a process of its own, printed as a number.

python -m benchmarks.memory loss {fused,dense} POSITIONS VOCABULARY   peak memory beyond the inputs [MB]
python -m benchmarks.memory step {kd,kd_lora,stock} RESULTS ROWS      one step of rows of 256 tokens: peak of the process [MB]
python -m benchmarks.memory step {opd,trl_opd} RESULTS ROWS           one step of rollouts: the same
python -m benchmarks.memory beyond {kd,kd_lora} RESULTS ROWS          one step: the peak beyond the libraries [MB]
python -m benchmarks.memory rate kd RESULTS ROWS                      tokens per second of a training
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import torch

from benchmarks import peers
from workflow_scripts.distill.losses import KdLoss, SparseTeacher, fused_distillation_loss

HIDDEN, K = 576, 64


def loss_inputs(positions: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, SparseTeacher]:
    """Hidden states, output embedding, targets and a sparse teacher, all random from one seed."""
    torch.manual_seed(0)
    hidden = torch.randn(positions, HIDDEN).requires_grad_()
    weight = (0.05 * torch.randn(vocabulary, HIDDEN)).requires_grad_()
    ids = torch.stack([torch.randperm(vocabulary)[:K] for _ in range(64)]).repeat(positions // 64 + 1, 1)[:positions]
    logits = torch.randn(positions, K)
    rest = torch.logsumexp(logits, -1) - 2  # a tenth of the whole
    return hidden, weight, torch.randint(vocabulary, (positions,)), SparseTeacher(ids, logits, rest)


def peak() -> float:
    """Peak resident memory of this process [MB]."""
    return field("VmHWM")


def field(name: str) -> float:
    """A field of /proc/self/status [MB]."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def loss(which: str, positions: int, vocabulary: int) -> float:
    """Memory of loss and backward beyond the inputs; the dense teacher's logits are no input of ours, so they count."""
    hidden, weight, targets, teacher = loss_inputs(positions, vocabulary)
    before = field("VmRSS")
    if which == "fused":
        fused_distillation_loss(hidden, weight, targets, teacher, KdLoss(0.5)).total.backward()
    else:
        peers.dense_loss(hidden, weight, targets, torch.randn(positions, vocabulary), 0.5).backward()
    return peak() - before


def step(which: str, results: Path, rows: int) -> float:
    """One optimizer step of a training; the whole process."""
    from benchmarks.training import Inputs, train

    if which in ("opd", "trl_opd"):
        inputs = Inputs.rollouts(results, rows, teacher=which == "trl_opd")
    else:
        inputs = Inputs.read(results, rows, length=256)
    train(which, inputs, batch=rows, steps=1)
    return peak()


def beyond(which: str, results: Path, rows: int) -> float:
    """What a training takes beyond the libraries: two copies of the weights, activations, gradients, the optimizer's state."""
    import_module("benchmarks.training")  # with all libraries of a training

    before = field("VmRSS")
    return step(which, results, rows) - before


def rate(which: str, results: Path, rows: int) -> float:
    """Tokens/s of a training in steps of 8 rows, the first one left out."""
    from benchmarks.training import Inputs, train

    return train(which, Inputs.read(results, rows), batch=8, steps=rows // 8)


def main() -> int:
    """Run the command line."""
    what, which, *rest = sys.argv[1:]
    last = int(rest[1])
    print(
        loss(which, int(rest[0]), last)
        if what == "loss"
        else {"step": step, "beyond": beyond, "rate": rate}[what](which, Path(rest[0]), last)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
