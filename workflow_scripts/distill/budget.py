"""What a training does at so many joules, by the meter's own account of them: it is evaluated, or it ends."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import ClassVar

from workflow_scripts.errors import UserError
from workflow_scripts.progress import EnergySoFar, energy_so_far
from workflow_scripts.settings.schema import Training

JOULES_PER_KWH = 3.6e6
_FIRST_FIGURE_WITHIN_S = 60.0
_FIRST_FIGURE_WITHIN_FLUSHES = 2
_STALE_AFTER_S = 60.0
_STALE_AFTER_FLUSHES = 10


class EnergyUnknown(UserError):
    """A training is to act at so many joules, but what was spent is not known."""


@dataclass
class ByTheMeter:
    """A key of `training` that says at how many joules something happens."""

    value: float
    _last: EnergySoFar | None = field(default=None, init=False)  # as last read from the meter's file
    key: ClassVar[str]
    instead: ClassVar[str]

    def wait_for_meter(self, seconds: float = _FIRST_FIGURE_WITHIN_S) -> None:
        """Wait for the meter's first figure: CodeCarbon needs two seconds, and it is told at a flush.

        Raises EnergyUnknown after `seconds` and two flush periods, whichever is longer, and at once without a meter.
        """
        begun = time.monotonic()
        while (now := energy_so_far()).joules is None:
            without_meter = now.read and now.every_seconds == 0.0
            if without_meter or time.monotonic() - begun > max(seconds, _FIRST_FIGURE_WITHIN_FLUSHES * now.every_seconds):
                raise self._unknown(now.reason or "no reason given")
            time.sleep(0.1)
        self._last = now

    def read(self) -> EnergySoFar:
        """What the meter says. Raises EnergyUnknown when it has no figure, or an old one.

        While its file cannot be read the last figure holds, until that is too old.
        """
        now = energy_so_far()
        if now.read:
            self._last = now
        elif self._last is not None:
            now = self._last
        if now.joules is None:
            raise self._unknown(now.reason or "no reason given")
        if (age := time.time() - now.time) > max(_STALE_AFTER_S, _STALE_AFTER_FLUSHES * now.every_seconds):
            raise self._unknown(f"the meter's last figure is {age:.0f} s old")
        return now

    def _unknown(self, reason: str) -> EnergyUnknown:
        return EnergyUnknown(
            f"training.{self.key} = {self.value:g}, but the energy of this training is not known ({reason}): set it to "
            f"null and {self.instead}, or give the meter a source (energy.total_energy_policy, energy.track_cpu)"
        )


@dataclass
class EvaluationGrid(ByTheMeter):
    """`training.eval_joules`: an evaluation whenever the work phase has used that much again [J].

    What start-up, saving and the evaluations use is not counted, nor what earlier attempts and further hosts did.
    """

    key = "eval_joules"
    instead = "set training.eval_steps"
    _passed: int = field(default=0, init=False)

    @classmethod
    def of(cls, training: Training) -> EvaluationGrid | None:
        """The grid of a training block, None where it sets none."""
        return cls(training.eval_joules) if training.eval_joules is not None else None

    def due(self) -> bool:
        """Whether a multiple of the joules was passed since this was asked last; at most one flush period late.

        Raises EnergyUnknown as `read` does.
        """
        before, self._passed = self._passed, max(self._passed, int(self.read().work_joules // self.value))
        return self._passed > before


@dataclass
class EnergyBudget(ByTheMeter):
    """`training.energy_budget_kwh`: joules that a training may use, earlier attempts, evaluations and start-up included.

    The meter tells the spent energy once per `energy.flush_seconds`, so a training ends up to that much and one step late; its
    last checkpoint, evaluation and model are saved after that, on the bill, too.
    """

    key = "energy_budget_kwh"
    instead = "train by training.token_budget"

    @classmethod
    def of(cls, training: Training) -> EnergyBudget | None:
        """The budget of a training block, None where it sets none."""
        return cls(training.energy_budget_kwh) if training.energy_budget_kwh is not None else None

    def spent(self) -> bool:
        """Whether the budget is used up. Raises EnergyUnknown as `read` does."""
        return (self.read().joules or 0.0) >= self.value * JOULES_PER_KWH
