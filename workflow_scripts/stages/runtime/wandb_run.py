"""The W&B run of an experiment: one for its training, the training's later attempts, and the final figures.

The run's id is the experiment's name and the fingerprint of the training's state folder (settings, inputs and code), so every
attempt at one training continues one run and another training begins a new one. Nothing that W&B does ends a stage: a run that
cannot be opened online is kept offline, and a run that fails later is given up, both with a warning. Keys are left to wandb
itself; they are read, logged and passed on nowhere here.
"""

from __future__ import annotations

import netrc
import os
import sys
from pathlib import Path
from time import monotonic
from typing import Any, Literal, cast

from workflow_scripts.progress import Progress, energy_so_far
from workflow_scripts.settings.section import Section
from workflow_scripts.settings.wandb import Wandb

Mode = Literal["online", "offline", "disabled"]
HOST = "api.wandb.ai"
STEP = "train/global_step"
_TIMEOUTS = {"init_timeout": 30.0, "finish_timeout": 60.0}  # s; WANDB_INIT_TIMEOUT and WANDB_FINISH_TIMEOUT win
_FLUSH_SECONDS = 2.0  # what a kill loses of an offline run
# of one attempt
_AT_THE_END = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos", "train_loss")


class WandbChoice(Section):
    """Where an experiment logs; changes no result, so no stage depends on it. `folder` takes the files of its W&B run."""

    wandb: Wandb
    experiment: str
    pipeline: str
    folder: str
    group: str | None = None  # the method, of which this is one run

    @classmethod
    def nothing(cls, log_interval: int = 10) -> WandbChoice:
        """No W&B: a stage that is started by hand, or a process that is not the one that logs."""
        return cls(wandb=Wandb(log_interval=log_interval), experiment="", pipeline="", folder="")


def mode_of(choice: WandbChoice) -> Mode:
    """`auto` follows WANDB_MODE, else is online where wandb will find a key (WANDB_API_KEY, ~/.netrc), else offline."""
    wandb = choice.wandb
    if not wandb.enabled:
        return "disabled"
    if wandb.mode != "auto":
        return wandb.mode
    if (asked := os.environ.get("WANDB_MODE")) in ("online", "offline", "disabled"):
        return cast(Mode, asked)
    return "online" if os.environ.get("WANDB_API_KEY") or _logged_in() else "offline"


def _logged_in() -> bool:
    """Whether `wandb login` has left a key for this user."""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(HOST) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def run_id(experiment: str, fingerprint: str) -> str:
    """Id of the run of one training."""
    return f"{experiment[:100]}-{fingerprint}"


def _end_service(run: Any) -> None:
    import wandb

    wandb.teardown()


def _on_steps(run: Any) -> Any:
    run.define_metric("*", step_metric=STEP)
    return run


def logged_name(key: str) -> str:
    """Name of a metric of the Trainer in the run."""
    return f"eval/{key[5:]}" if key.startswith("eval_") else f"train/{key}"


def energy_metrics(stage: str, joules: float) -> dict[str, float]:
    """Names of a stage's energy in the run."""
    return {f"energy/{stage}/joules": joules, f"energy/{stage}/kwh": joules / 3.6e6}


class Run:
    """An open W&B run; where W&B is disabled or was given up (`error` says why), what is logged goes nowhere."""

    def __init__(self, choice: WandbChoice, ident: str, config: dict[str, Any]) -> None:
        self.ident, self.mode, self.error = ident, mode_of(choice), ""
        self._stage = os.environ.get("METER_STAGE", "student_train")
        self._since: tuple[float, dict[str, int]] | None = None
        self._run: Any = None
        if self.mode == "disabled":
            return
        try:
            self._run = self._open(choice, config)
        except Exception as error:  # a training must not end because of its tracking
            self._give_up("not opened", error)

    def _open(self, choice: WandbChoice, config: dict[str, Any]) -> Any:
        import wandb  # 1 s, and only where it is asked for

        folder = Path(choice.folder)
        folder.mkdir(parents=True, exist_ok=True)
        limits = {k: v for k, v in _TIMEOUTS.items() if f"WANDB_{k.upper()}" not in os.environ}

        def init() -> Any:
            return wandb.init(
                project=choice.wandb.project,
                entity=choice.wandb.entity,
                name=choice.wandb.run_name or choice.experiment,
                group=choice.group,
                id=self.ident,
                resume="allow",  # offline, it makes `wandb sync` append this piece to the earlier ones
                mode=self.mode,
                dir=str(folder),
                config=config,
                tags=[choice.pipeline],
                allow_val_change=True,
                settings=wandb.Settings(console="off", silent=True, x_transaction_log_flush_interval=_FLUSH_SECONDS, **limits),
            )

        try:
            return _on_steps(init())
        except (wandb.Error, OSError) as error:
            if self.mode != "online":
                raise
            print(f"warning: W&B cannot be reached, the run is kept offline in {folder}/wandb: {_line(error)}", file=sys.stderr)
            wandb.teardown()
            self.mode = "offline"
            return _on_steps(init())

    def training(self, progress: Progress, logs: dict[str, Any]) -> None:
        """Log a line of the Trainer at the optimizer step that `progress` is at, with throughput and the energy so far."""
        metrics: dict[str, float] = {}
        for key, value in logs.items():
            if isinstance(value, int | float) and key not in _AT_THE_END:
                metrics[logged_name(key)] = value
        if self._run is not None and metrics:
            self.log(progress.steps, metrics | self._throughput(progress) | self._energy())

    def _throughput(self, progress: Progress) -> dict[str, float]:
        """Tokens per second since the last line with new steps; none for the first line, which the start-up is in."""
        now, counts = monotonic(), dict(progress.tokens)
        since, self._since = self._since, self._since or (now, counts)
        if since is None or counts.get("loss", 0) == since[1].get("loss", 0):
            return {}
        self._since = now, counts
        return {
            f"throughput/{kind}_tokens_per_second": (counts.get(kind, 0) - since[1].get(kind, 0)) / (now - since[0])
            for kind in ("loss", "input")
        }

    def _energy(self) -> dict[str, float]:
        """Energy of the stage and all its attempts, as of the meter's last flush; nothing where it is not known."""
        joules = energy_so_far().joules
        return {} if joules is None else energy_metrics(self._stage, joules)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Log metrics at an optimizer step.

        A step that an earlier attempt has logged online is left as it is. `wandb sync` numbers later pieces anew, so charts are
        drawn over STEP.
        """
        self._do("a line was lost", lambda run: run.log(metrics | {STEP: step}, step=step))

    def conclude(self, figures: dict[str, float], config: dict[str, Any]) -> None:
        """Set final figures and the configuration that the run is listed with."""
        self._do("final figures were lost", lambda run: run.config.update(config, allow_val_change=True))
        self._do("final figures were lost", lambda run: run.summary.update(figures))

    def finish(self, failed: bool = False) -> None:
        """Close the run, waiting at most WANDB_FINISH_TIMEOUT for its upload; what is left can be synced later."""
        self._do("not closed", lambda run: run.finish(exit_code=int(failed)))
        self._do("its service was not ended", _end_service)
        self._run = None

    def _do(self, what: str, action: Any) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # whatever its service process died of
            self._give_up(what, error)

    def _give_up(self, what: str, error: Exception) -> None:
        self._run, self.error = None, f"{what}: {_line(error)}"
        print(f"warning: W&B run {self.ident}: {self.error}: it is given up, the stage goes on", file=sys.stderr)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
