"""What each optimizer step does, counted in tokens, and the callback that reports it and ends a training in good order."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from workflow_scripts.distill import checkpoints
from workflow_scripts.distill.budget import EnergyBudget, EnergyUnknown, EvaluationGrid
from workflow_scripts.distill.parallel import barrier, highest, is_main
from workflow_scripts.errors import UserError
from workflow_scripts.progress import Progress

SHOWN = ("loss", "cross_entropy", "kl", "learning_rate", "rewards/margins", "rewards/accuracies", "eval_loss")


class NotFinite(UserError):
    """A training that has gone to NaN or infinity."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(
            f"{what} is not finite at step {step}: lower training.learning_rate or set training.dtype: float32, and look "
            "at the starting model's weights"
        )


@dataclass(frozen=True)
class StepWork:
    """Typed work of one optimizer step."""

    examples: int
    loss: int
    input: int
    padded: int


@dataclass(frozen=True)
class ExampleWork:
    """Loss tokens of one example and the lengths of its sequences (one; for a preference pair two)."""

    loss: int
    lengths: tuple[int, ...]


def work_per_step(
    order: Sequence[int], work: Sequence[ExampleWork], batch_size: int, accumulation: int, packed: bool = False
) -> list[StepWork]:
    """Typed work of each optimizer step; every batch is padded to its longest sequence, unless its rows are packed."""
    steps = []
    per_step = batch_size * accumulation
    for begin in range(0, len(order), per_step):
        step = order[begin : begin + per_step]
        padded = 0
        for b in range(0, len(step), batch_size):
            lengths = [length for i in step[b : b + batch_size] for length in work[i].lengths]
            padded += 0 if packed else max(lengths) * len(lengths) - sum(lengths)
        loss, length = sum(work[i].loss for i in step), sum(sum(work[i].lengths) for i in step)
        steps.append(StepWork(len(step), loss, length, padded))
    return steps


class _Stop(IntEnum):
    """Why to stop after this step; of several processes the highest holds."""

    NO = 0
    BUDGET = 1
    UNKNOWN = 2
    SIGNAL = 3


class WorkCallback(TrainerCallback):
    """Reports work and metrics after every optimizer step; SIGTERM and a spent energy budget end in a checkpoint.

    With a `grid` it asks for an evaluation wherever the training has used so many joules again.

    `ended_by` names the key that ended the training; it is that of the planned end until the energy budget is spent.
    `listener` hears every log line of the Trainer, after the work that it covers was counted.
    """

    def __init__(
        self,
        progress: Progress,
        steps: Sequence[StepWork],
        listener: Callable[[Progress, dict[str, Any]], None] | None = None,
        ended_by: str = "token_budget",
        budget: EnergyBudget | None = None,
        grid: EvaluationGrid | None = None,
    ) -> None:
        self.progress, self._steps, self._listener, self._budget, self._grid = progress, steps, listener, budget, grid
        self.ended_by = ended_by
        self.signal: int | None = None
        self.unknown: EnergyUnknown | None = None
        self._blind = False
        signal.signal(signal.SIGTERM, self._remember)

    def _remember(self, signum: int, frame: Any) -> None:
        self.signal = signum

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """State what earlier attempts left done. Raises EnergyUnknown when joules are to be counted without a meter."""
        if state.global_step:
            done = self._steps[: state.global_step]
            self.progress.resume(
                steps=len(done),
                examples=sum(s.examples for s in done),
                loss=sum(s.loss for s in done),
                input=sum(s.input for s in done),
                padded=sum(s.padded for s in done),
            )
        for counting in (self._budget, self._grid):
            if counting is not None and is_main():
                counting.wait_for_meter()
        self.progress.phase("work")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What follows is no training. Raises NotFinite: the last update may not be in a checkpoint."""
        _check_weights(kwargs["model"], state.global_step, args.device)
        self.progress.phase("save")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the step's work, and stop where there is a reason to."""
        work = self._steps[state.global_step - 1]
        self.progress.add(steps=1, examples=work.examples, loss=work.loss, input=work.input, padded=work.padded)
        if self._grid is not None and highest(int(self._due(self._grid)), args.device):
            control.should_evaluate = True
        reason = _Stop(highest(self._reason(), args.device))
        if reason is _Stop.UNKNOWN and state.global_step >= len(self._steps):
            if self.unknown is not None:  # nothing is left to stop: a finished training is kept, its record warns
                self.progress.warnings.append(f"energy at the last step: {self.unknown}")
            self.unknown = None
            return
        if reason is _Stop.NO:
            return
        if reason is _Stop.SIGNAL:
            self.signal = self.signal or signal.SIGTERM
        if reason is _Stop.UNKNOWN:
            self.unknown = self.unknown or EnergyUnknown("the main process does not know the energy of this training")
        if reason is _Stop.BUDGET and state.global_step < len(self._steps):
            self.ended_by = "energy_budget_kwh"
            control.should_evaluate = args.eval_strategy != "no"  # as at a planned end
        control.should_save = True
        control.should_training_stop = True

    def _due(self, grid: EvaluationGrid) -> bool:
        """Whether to evaluate now, by the main process; once the energy is not known, which the record says, never."""
        if not is_main() or self._blind:
            return False
        try:
            return grid.due()
        except EnergyUnknown as error:
            self._blind = True
            self.progress.warnings.append(f"no further evaluation on the way: {error}")
            return False

    def _reason(self) -> _Stop:
        """Why this process would stop; only the main one asks the meter."""
        if self.signal is not None:
            return _Stop.SIGNAL
        if self._budget is None or not is_main():
            return _Stop.NO
        try:
            return _Stop.BUDGET if self._budget.spent() else _Stop.NO
        except EnergyUnknown as error:
            self.unknown = error
            return _Stop.UNKNOWN

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Keep the newest metrics."""
        if shown := {k: float(v) for k, v in (logs or {}).items() if k in SHOWN}:
            self.progress.measure(shown)
        if self._listener is not None and logs:
            self._listener(self.progress, logs)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A whole checkpoint makes the work so far durable; one whose weights are no numbers is left unsealed (NotFinite)."""
        _check_weights(kwargs["model"], state.global_step, args.device)
        barrier()  # other processes write their random state into the same folder
        if is_main():
            checkpoints.seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")
        barrier()  # srun ends all processes of a training when one ends, which must not be before the seal
        self.progress.saved()


def _check_weights(model: Any, step: int, device: torch.device) -> None:
    """Raise NotFinite in all processes when a weight of one is no finite number; of sharded weights each looks at its own."""
    own = (getattr(p, "to_local", lambda p=p: p)() for p in model.parameters())
    spoiled = not all(bool(torch.isfinite(part).all()) for part in own)
    if highest(int(spoiled), device):
        raise NotFinite("a weight", step)
