"""One experiment to disturb: an undisturbed run, and copies of it in which one stage is to be made again."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.faults import checks
from benchmarks.faults.watch import Stage, Watch, now, processes_of
from tests.conftest import PARTS, REPOSITORY, Workflow, _link_or_copy, copy_workflow
from workflow_scripts.artefact import SCHEMA, write_json

OVERLAY = Path(__file__).with_name("overlay.yaml")
DRIVER_S, REST_S = 600.0, 30.0  # how long Snakemake may take, and a stage after it
MOST_RERUNS = 3
CORES = "1"
METER = {"flush_seconds": 0.1, "nvml_poll_interval_ms": 50, "total_energy_policy": "measured"}  # little lost per kill


class Missed(Exception):
    """The stage had ended before the fault could be injected: nothing was tried."""


class Lost(Exception):
    """The experiment could not be brought to its end."""


@dataclass(frozen=True)
class Target:
    """A stage to disturb: what the meter calls it, its module, and globs of what it makes and of its record."""

    name: str
    stage: str
    module: str
    output: str
    record: str
    merge: bool = False  # the parts' work is there, so that the merge is all that there is to do


def _target(name: str, stage: str, folder: str, output: str, module: str = "", merge: bool = False) -> Target:
    record = f"results/{folder}/stages/{stage}.json"
    module = f"workflow_scripts.stages.{module or stage}"
    return Target(name, stage, module, f"results/{folder}/{output}", record, merge)


def _targets() -> dict[str, Target]:
    found = [
        _target("prepare_model", "prepare_model", "models/smollm2-64m-pruned", "model/manifest.json"),
        _target("preprocess", "preprocess", "corpus/*", "dataset/manifest.json"),
    ]
    for stage, part, merge, kind in (
        ("logit_caching", "cache_logits", "merge_logits", "logit_cache"),
        ("synthetic_generation", "generate_answers", "merge_answers", "synthetic_dataset"),
        ("preference_dataset", "rank_pairs", "merge_pairs", "preference_dataset"),
    ):
        found.append(_target(part, stage, f"teacher/{kind}-*", f"{kind}/manifest.json"))
        found.append(_target(merge, stage, f"teacher/{kind}-*", f"{kind}/manifest.json", merge, merge=True))
    for name in ("kd", "sft", "baseline"):
        found.append(_target(f"train_{name}", "student_train", f"demo_{name}", "final_model/manifest.json"))
    found.append(_target("train_dpo", "dpo_training", "demo_dpo", "final_policy/manifest.json"))
    for name in ("kd", "dpo"):
        found.append(_target(f"evaluate_{name}", "evaluation", f"demo_{name}", "evaluation.json"))
    return {target.name: target for target in found}


TARGETS = _targets()


class Base:
    """The undisturbed run: its results, and how long each target's stage took in it.

    Every trial gets the same number of cores: the order of sums, and with it the last bit, may depend on the threads.
    """

    def __init__(self, workflow: Workflow, cores: str) -> None:
        self.workflow, self.cores = workflow, cores
        self.results = checks.results(workflow.folder)
        self.seconds = {target.name: self._usual(target) for target in TARGETS.values()}

    @classmethod
    def make(cls, folder: Path, downloads: Path, rapl: Path) -> Base:
        """Run the tiny experiment once, or take the finished one in `folder`."""
        workflow = Workflow(folder, folder / "tiny.yaml")
        if not (folder / "finished").exists():
            shutil.rmtree(folder, ignore_errors=True)
            workflow = copy_workflow(folder, downloads)
            changes = yaml.safe_load(OVERLAY.read_text())
            for name, own in changes.pop("experiments").items():
                merge(folder / "config/experiments" / f"{name}.yaml", own)
            configure(workflow.overlay, changes, rapl)
            merge(workflow.overlay, {"training": {"token_budget": None}})
            workflow.snakemake("--cores", CORES)
            (folder / "finished").touch()
        for part in PARTS:
            if subprocess.run(
                ["diff", "-rq", "-x", "__pycache__", "-x", "experiments", REPOSITORY / part, folder / part],
                stdout=subprocess.PIPE,
            ).returncode:
                print(f"warning: {folder} was made from other sources ({part} differs): delete it to test what is here now")
        return cls(workflow, CORES)

    def _usual(self, target: Target) -> float:
        record = self.workflow.json(target.record)
        part = "1-of-1" if target.module.endswith(f".{target.stage}") and record["parts"] else None
        return float(next(a["duration_seconds"] for a in record["attempts"] if a["part"] == part))


def configure(overlay: Path, changes: dict, rapl: Path) -> None:
    """Merge `changes` into a configuration overlay; the power comes from the counters in `rapl`."""
    merge(overlay, changes)
    merge(overlay, {"energy": METER | {"rapl_root": str(rapl)}})


def merge(path: Path, changes: dict) -> None:
    """Merge sections into a YAML file; a value of None removes its key."""
    content = yaml.safe_load(path.read_text())
    for section, values in changes.items():
        merged = content.get(section, {}) | values
        content[section] = {key: value for key, value in merged.items() if value is not None}
    path.write_text(yaml.safe_dump(content, sort_keys=False))


class Run:
    """A linked copy of the undisturbed run in which the target's stage is to be made again.

    `arguments` go to every Snakemake in place of the number of cores (those of an executor, say). What a fault sets up is
    undone by its `cleanups`.
    """

    def __init__(
        self, folder: Path, base: Base, target: Target, rapl: Path, seed: int = 0, arguments: tuple[str, ...] = ()
    ) -> None:
        self.folder, self.base, self.target, self.arguments = folder, base, target, arguments
        self.random = random.Random(seed)
        self.cleanups: list[Callable[[], object]] = []
        self.driver: subprocess.Popen[bytes] | None = None
        self.drivers = 0
        self.reruns = 0
        self.notes: list[str] = []
        shutil.copytree(base.workflow.folder, folder, copy_function=_link_or_copy, symlinks=True)
        self.workflow = Workflow(folder, folder / base.workflow.overlay.name)
        configure(self.workflow.overlay, {}, rapl)
        self.output = self.workflow.path(target.output)
        self.record = self.workflow.path(target.record)
        fingerprint = json.loads(self.record.read_text())["provenance"]["fingerprint"]
        self.state = folder / "results/state" / target.stage / fingerprint
        self.wanted = [str(path.relative_to(folder)) for path in (self.output, self.record)]
        self._clear()
        self.started = time.time()
        self.watch = Watch(folder)

    # ---- for faults

    @property
    def stage(self) -> Stage:
        """The target's stage in the run that is disturbed."""
        found = self.watch.stage(self.target.module, DRIVER_S, lambda: bool(self.driver and self.driver.poll() is not None))
        if found is None:
            raise Lost(f"{self.target.module} was not started:\n{self.log()[-2000:]}")
        return found

    def await_moment(self, moment: float) -> None:
        """Return `moment` seconds after the stage's start. Raises Missed when it has ended by then."""
        stage = self.stage
        while stage.alive and now() < stage.begin + moment:
            time.sleep(0.005)
        if not stage.alive:
            raise Missed

    def await_sight(self, pattern: str) -> None:
        """Wait for a file in the state folder. Raises Missed when the stage ends without it."""
        while not list(self.state.glob(pattern)):
            if not self.stage.alive:
                raise Missed
            time.sleep(0.01)

    def send(self, signum: int, *processes: str) -> None:
        """Send a signal to `stage`, `meter`, `driver`, or `group` (the driver with what it started, as Ctrl-C does)."""
        assert self.driver is not None and self.stage.meter is not None
        victims = {"stage": self.stage.pid, "meter": self.stage.meter.pid, "driver": self.driver.pid, "group": -self.driver.pid}
        if not self.stage.alive:
            raise Missed
        for name in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victims[name], signum)

    def await_rest(self) -> None:
        """Wait until no stage runs any more. Raises Lost when one does not end."""
        deadline = time.monotonic() + REST_S
        while running := [stage for stage in self.watch.stages if stage.alive]:
            if time.monotonic() > deadline:
                raise Lost(f"{running[0].module} (process {running[0].pid}) still runs")
            time.sleep(0.02)

    def log(self) -> str:
        """What the newest driver has printed."""
        return (self.folder / f"driver-{self.drivers}.log").read_text(errors="replace")

    # ---- Snakemake

    def start(self, *arguments: str) -> None:
        """Start Snakemake in a session of its own; its output goes to driver-N.log."""
        self.drivers += 1
        command = [sys.executable, "-m", "snakemake", *arguments, *(self.arguments or ("--cores", self.base.cores))]
        command += ["--configfile", str(self.workflow.overlay)]
        with (self.folder / f"driver-{self.drivers}.log").open("wb") as log:
            self.driver = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> int:
        """Wait for Snakemake to end; its exit code."""
        assert self.driver is not None
        try:
            return self.driver.wait(DRIVER_S)
        except subprocess.TimeoutExpired:
            raise Lost(f"snakemake does not end within {DRIVER_S:.0f} s") from None

    def snakemake(self, *arguments: str) -> int:
        """Run Snakemake to its end; its exit code."""
        self.start(*arguments)
        return self.wait()

    def finish(self, unlock: bool, whole: bool = True) -> None:
        """Run Snakemake again, as a user would, until the output is there, then (`whole`) the default targets.

        Raises Lost when it will not be there, or something is to be done after that.
        """
        if list(self.folder.glob(".snakemake/locks/*")):
            if not unlock:
                raise Lost("the working directory is left locked")
            self.snakemake("--unlock")
        while self.snakemake(*self.wanted):
            self.reruns += 1
            if self.reruns == MOST_RERUNS:
                raise Lost(f"still fails in run {self.reruns} after the fault:\n{self.log()[-3000:]}")
        self.reruns += 1
        if whole and self.snakemake():
            raise Lost(f"the default targets fail:\n{self.log()[-3000:]}")
        if self.snakemake("-n", *([] if whole else self.wanted)) or "Nothing to be done" not in self.log():
            raise Lost(f"there is still something to be done:\n{self.log()[-3000:]}")

    def close(self) -> list[str]:
        """Undo the fault and end what is left. Returns the processes that should not have been there."""
        self.watch.stop()
        deadline = time.monotonic() + 5
        while (left := processes_of(self.folder)) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for cleanup in reversed(self.cleanups):
            cleanup()
        return [f"{pid}: {command}" for pid, command in left.items()]

    # ---- the copy

    def _clear(self) -> None:
        """Remove what the stage has made: artefact, record, state."""
        if self.target.merge:
            self._restore_parts()
        else:
            shutil.rmtree(self.state)
            for parts in self.folder.glob(f"results/teacher/{self.target.stage}-*/parts"):
                shutil.rmtree(parts)
        if self.output.name == "manifest.json":
            shutil.rmtree(self.output.parent)
        else:
            self.output.unlink()
        self.record.unlink()

    def _restore_parts(self) -> None:
        """Put back what was there before the merge: shards in the state folder, manifest and record of the part."""
        units = self.state / "units"
        for shard in self.output.parent.glob("shard-*"):
            shutil.copy2(shard, units)
        (units / "merged_into.json").unlink(missing_ok=True)
        for leftover in self.state.iterdir():
            if leftover.name not in ("units", "parts"):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        count = len(list(units.glob("unit-*.json")))
        if list(self.folder.glob(f"results/teacher/{self.target.stage}-*/parts/1-of-1.json")):
            return  # this stage keeps them
        (folder,) = self.folder.glob(f"results/teacher/{self.target.stage}-*")
        write_json(folder / "parts" / "1-of-1.json", {"schema": SCHEMA, "kind": "part", "part": "1-of-1", "units": count})
        shutil.copy2(self.state / "parts" / "1-of-1" / "record.json", folder / "parts" / "1-of-1.record.json")
