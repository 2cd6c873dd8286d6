"""An energy budget: how much the whole stage may use, by the meter's own account of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from workflow_scripts.errors import UserError
from workflow_scripts.progress import EnergySoFar, energy_so_far
from workflow_scripts.settings.schema import Training

JOULES_PER_KWH = 3.6e6
_FIRST_FIGURE_WITHIN_S = 60.0
_FIRST_FIGURE_WITHIN_FLUSHES = 2
_STALE_AFTER_S = 60.0
_STALE_AFTER_FLUSHES = 10


class EnergyUnknown(UserError):
    """An energy budget is set, but what was spent is not known."""


@dataclass
class EnergyBudget:
    """`training.energy_budget_kwh`: joules that a training may use, earlier attempts, evaluations and start-up included.

    The meter tells the spent energy once per `energy.flush_seconds`, so a training ends up to that much and one step late; its
    last checkpoint, evaluation and model are saved after that, on the bill, too.
    """

    kwh: float
    _last: EnergySoFar | None = field(default=None, init=False)  # as last read from the meter's file

    @classmethod
    def of(cls, training: Training) -> EnergyBudget | None:
        """The budget of a training block, None where it sets none."""
        return cls(training.energy_budget_kwh) if training.energy_budget_kwh is not None else None

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

    def spent(self) -> bool:
        """Whether the budget is used up. Raises EnergyUnknown when the meter has no figure, or an old one.

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
        return now.joules >= self.kwh * JOULES_PER_KWH

    def _unknown(self, reason: str) -> EnergyUnknown:
        return EnergyUnknown(
            f"training.energy_budget_kwh = {self.kwh:g}, but the energy of this training is not known ({reason}): set it to "
            "null and train by training.token_budget, or give the meter a source (energy.total_energy_policy, energy.track_cpu)"
        )
