"""One step in a process of its own; prints the peak of its resident memory beyond what it had before the step [MB].

python -m benchmarks.memory loss {fused,dense} POSITIONS VOCABULARY
python -m benchmarks.memory step {kd,kd_lora,stock} RESULTS      (4,096 tokens; peak of the whole process)
python -m benchmarks.memory step {opd,trl_opd} RESULTS   (16 rollouts)
"""

from __future__ import annotations

import sys
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
    lse = torch.logsumexp(logits, -1) + 0.1
    return hidden, weight, torch.randint(vocabulary, (positions,)), SparseTeacher(ids, logits, lse)


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


def step(which: str, results: Path) -> float:
    """One optimizer step of a training; the whole process."""
    from benchmarks.training import Inputs, train

    if which in ("opd", "trl_opd"):
        inputs = Inputs.rollouts(results, rows=16, teacher=which == "trl_opd")
    else:
        inputs = Inputs.read(results, rows=16, length=256)
    train(which, inputs, batch=16, steps=1)
    return peak()


def main() -> int:
    """Run the command line."""
    what, which, *rest = sys.argv[1:]
    print(loss(which, int(rest[0]), int(rest[1])) if what == "loss" else step(which, Path(rest[0])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
