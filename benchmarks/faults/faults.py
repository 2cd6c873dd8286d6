"""The faults: what goes wrong, in which stages, and how it is repaired.

A fault has a name, targets, and `inject(run, moment)`, which is called as soon as the target's stage has started and acts
`moment` seconds after its start. `prepare` sets up before Snakemake is started, `after` is called when that Snakemake has
ended: there a fault damages files or repairs what it broke.
"""

from __future__ import annotations

import errno
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults import mounts
from benchmarks.faults.run import TARGETS, Lost, Missed, Run
from benchmarks.faults.watch import module_of

ALL = tuple(TARGETS)
TRAININGS = tuple(name for name in ALL if name.startswith("train_"))
PARTS = ("cache_logits", "generate_answers", "rank_pairs")
TRACEBACK = re.compile(r"^Traceback .*\n(?: .*\n)+(.*)", re.MULTILINE)
ROOM, PAGE = 4 << 30, 4096  # bytes


class Unable(Exception):
    """This host cannot have the fault (no right to mount, say)."""


class Fault:
    """What the campaign needs of a fault."""

    name = ""
    targets: tuple[str, ...] = ALL
    executor: tuple[str, ...] = ()  # arguments of every Snakemake in the trial, in place of the number of cores
    arguments: tuple[str, ...] = ()  # further ones of the Snakemake that is disturbed
    unlock = False  # the user has to unlock the working directory afterwards

    def prepare(self, run: Run) -> None:
        """Before Snakemake is started."""

    def inject(self, run: Run, moment: float) -> None:
        """Do the damage `moment` seconds after the stage's start. Raises Missed when the stage has ended by then."""
        raise NotImplementedError

    def after(self, run: Run, code: int) -> None:
        """The disturbed Snakemake has ended with `code`: damage files, or repair."""


class Kill(Fault):
    """Signals to processes, in the order given."""

    def __init__(self, name: str, signum: int, *victims: str, unlock: bool = False, then_kill: float | None = None) -> None:
        self.name, self.signum, self.victims, self.unlock, self.then_kill = name, signum, victims, unlock, then_kill

    def inject(self, run: Run, moment: float) -> None:
        run.await_moment(moment)
        run.send(self.signum, *self.victims)
        if self.then_kill is not None:
            time.sleep(self.then_kill)
            try:
                run.send(signal.SIGKILL, "meter", "stage")
            except Missed:
                run.notes.append("ended within the grace time")


class DiskFull(Fault):
    """A file system of its own (tmpfs) under the state or the output folder, with no room left from the moment on."""

    def __init__(self, name: str, under: str, targets: tuple[str, ...] = ALL) -> None:
        self.name, self.under, self.targets = name, under, targets

    def prepare(self, run: Run) -> None:
        folder = self._folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        aside = run.folder / "aside"
        shutil.copytree(folder, aside, symlinks=True)
        permitted(mounts.tmpfs, folder, ROOM)
        run.cleanups.append(lambda: mounts.unmount(folder))
        shutil.copytree(aside, folder, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(aside)

    def inject(self, run: Run, moment: float) -> None:
        run.await_moment(moment)
        self._fill(self._folder(run))

    def after(self, run: Run, code: int) -> None:
        mounts.resize(self._folder(run), ROOM)
        if code:
            explained(run, "No space left on device")

    def _folder(self, run: Run) -> Path:
        if self.under == "state":
            return run.state
        return run.output.parents[1] if run.output.name == "manifest.json" else run.output.parent

    def _fill(self, folder: Path) -> None:
        while True:
            try:
                mounts.resize(folder, max(mounts.used(folder), PAGE))
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            else:
                return  # else the stage has written more between the two calls


class ReadOnly(Fault):
    """From the moment on all of results/ is read-only, but for files that are open already."""

    name = "read-only results"

    def inject(self, run: Run, moment: float) -> None:
        run.await_moment(moment)
        permitted(mounts.read_only, run.folder / "results")
        run.cleanups.append(lambda: mounts.unmount(run.folder / "results"))

    def after(self, run: Run, code: int) -> None:
        if not code:
            raise Missed  # all that it writes was there
        explained(run, "Read-only file system")
        if run.snakemake(*run.wanted) == 0:
            raise Lost("Snakemake finds nothing wrong with a read-only folder")
        if "Write-protected output files for rule" not in run.log():  # Snakemake's words, where an output is there already
            explained(run, "Read-only file system")
        run.cleanups.pop()()


class LateOutput(Fault):
    """The output is not to be seen for a while after the job has ended, as on a network file system.

    It is renamed away when the stage has ended and before Snakemake looks for it, and back after up to four seconds.
    """

    name = "late output"
    arguments = ("--latency-wait", "20")

    def inject(self, run: Run, moment: float) -> None:
        stage = run.stage
        while stage.alive:
            time.sleep(0.002)
        hidden = run.folder / "hidden"
        try:
            run.output.rename(hidden)
        except FileNotFoundError:
            raise Missed from None
        time.sleep(0.5 + min(moment, 3.5))
        hidden.rename(run.output)

    def after(self, run: Run, code: int) -> None:
        if code:
            raise Lost(f"Snakemake did not wait for the output:\n{run.log()[-2000:]}")


class Truncated(Fault):
    """Stage and meter are killed, and a file that was whole has lost its end when the next attempt reads it."""

    def __init__(self, name: str, targets: tuple[str, ...], proof: str, files: str) -> None:
        self.name, self.targets, self.proof, self.files = name, targets, proof, files

    def inject(self, run: Run, moment: float) -> None:
        run.await_moment(moment)
        run.await_sight(self.proof)
        run.send(signal.SIGKILL, "meter", "stage")

    def after(self, run: Run, code: int) -> None:
        while run.stage.alive:
            time.sleep(0.01)
        whole = max(run.state.glob(self.proof), key=lambda path: path.stat().st_mtime)
        files = sorted(path for path in whole.parent.glob(self.files) if path.is_file() and path.stat().st_size)
        if not files:
            raise Missed  # they are in the artefact by now
        victim = run.random.choice(files)
        cut(victim, run.random)
        run.notes.append(f"cut {victim.relative_to(run.state)} to {victim.stat().st_size} bytes")


class DeletedManifest(Fault):
    """The manifest of a finished artefact is gone."""

    name = "deleted manifest"
    targets = tuple(name for name in ALL if not name.startswith("evaluate_"))

    def inject(self, run: Run, moment: float) -> None:
        while run.stage.alive:
            time.sleep(0.01)

    def after(self, run: Run, code: int) -> None:
        if code:
            raise Lost(f"the undisturbed stage fails:\n{run.log()[-2000:]}")
        run.output.unlink()


class DeletedInput(Fault):
    """The manifest of an input is deleted while the stage runs."""

    name = "deleted manifest of an input"

    def inject(self, run: Run, moment: float) -> None:
        run.await_moment(moment)
        inputs = manifests(run)
        victim = run.random.choice(inputs)
        (run.folder / victim).unlink()
        run.wanted.append(victim)
        run.notes.append(f"deleted {victim}")


def faults() -> list[Fault]:
    """All local faults."""
    return [
        Kill("SIGTERM of the meter", signal.SIGTERM, "meter"),
        Kill("SIGTERM, then SIGKILL", signal.SIGTERM, "meter", then_kill=0.5),
        Kill("SIGKILL of the stage", signal.SIGKILL, "stage"),
        Kill("SIGKILL of the meter", signal.SIGKILL, "meter"),
        Kill("SIGKILL of both", signal.SIGKILL, "meter", "stage"),
        Kill("SIGKILL of the driver", signal.SIGKILL, "driver", unlock=True),
        Kill("SIGTERM of the driver", signal.SIGTERM, "driver"),
        Kill("SIGINT of the driver", signal.SIGINT, "driver"),
        Kill("Ctrl-C", signal.SIGINT, "group"),
        DiskFull("disk full under the state", "state"),
        DiskFull("disk full under the output", "output"),
        ReadOnly(),
        LateOutput(),
        Truncated("truncated checkpoint", TRAININGS, "checkpoints/checkpoint-*/trainer_state.json", "*"),
        Truncated("truncated shard", ("cache_logits", "merge_logits"), "units/unit-*.json", "shard-*.safetensors"),
        Truncated("truncated unit", PARTS, "units/unit-*.json", "unit-*.json"),
        DeletedManifest(),
        DeletedInput(),
    ]


def explained(run: Run, reason: str) -> None:
    """Note it when the newest Snakemake's output has no line that names the path, or a traceback of ours."""
    text = run.log()
    if not any(reason in line and "results" in line for line in text.splitlines()):
        run.notes.append(f"unclear: no line with '{reason}' names a path in driver-{run.drivers}.log")
    ours = [found[1] for found in re.finditer(TRACEBACK, text) if "workflow_scripts" in found[0]]
    run.notes += [f"unclear: a traceback in driver-{run.drivers}.log: {error}" for error in ours]


def cut(path: Path, generator: random.Random) -> None:
    """Take the end off a file, in a new file: the old one may be linked to the undisturbed run."""
    content = path.read_bytes()
    shorter = path.with_name(f"{path.name}.cut")
    shorter.write_bytes(content[: generator.randrange(len(content))])
    shorter.replace(path)


def manifests(run: Run) -> list[str]:
    """The input manifests that the stage was started with."""
    arguments = Path(f"/proc/{run.stage.pid}/cmdline").read_bytes().decode().split("\0")
    if module_of(run.stage.pid) is None or "--out" not in arguments:
        raise Missed
    return [a for a in arguments[: arguments.index("--out")] if a.endswith("/manifest.json")]


def permitted(mount: Callable[..., None], *arguments: object) -> None:
    """Mount something. Raises Unable where this user may not."""
    try:
        mount(*arguments)
    except PermissionError as error:
        raise Unable(str(error)) from None
