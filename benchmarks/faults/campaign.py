"""The fault campaign: faults at random moments in the stages of the tiny experiment, each followed by a rerun to the end.

    python -m benchmarks.faults.campaign [--count N] [--slurm N] [--seed S] [--only NAME ...] [--target NAME ...] [--jobs J]
        [--folder DIR] [--base DIR]

Prints a line per trial and a table at the end; exits 1 when something was lost. `survived` means: final weights, data sets and
manifests are bit for bit those of the undisturbed run, every attempt is on the bill with the time that an external clock saw,
no process and no lock is left, and Snakemake finds nothing more to do. `unclear` counts messages that do not name the fault and
the path. `late` is the worst difference of the attempts' summed time to the clock. The folder of a trial that was lost or
unclear is kept.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from benchmarks.faults import checks
from benchmarks.faults.faults import Fault, Unable, faults
from benchmarks.faults.run import METER, TARGETS, Base, Lost, Missed, Run, Target
from benchmarks.faults.slurm_faults import slurm_faults
from tests.conftest import REPOSITORY
from tests.integration.test_kills import WATTS, Host
from tests.slurm.cluster import Cluster

TRIES = 5
EARLIER = 0.8  # after a miss
LATEST, LATEST_OF_MANY = 0.97, 1.2  # latest moment, of a stage's usual duration; several trials at once slow each other down
COLUMNS = ("fault", "count", "survived", "lost", "unclear", "reruns", "late %", "mean s")


@dataclass
class Trial:
    """A fault in a target's stage, at a fraction of its usual duration."""

    number: int
    fault: Fault
    target: Target
    fraction: float
    seed: int


@dataclass
class Outcome:
    """What became of a trial; without problems it was survived."""

    trial: Trial
    moment: float = 0.0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reruns: int = 0
    bill: checks.Bill | None = None
    seconds: float = 0.0
    injected: bool = False

    @property
    def unclear(self) -> bool:
        return any(note.startswith("unclear") for note in self.notes)


def plan(choice: list[Fault], targets: list[str], count: int, seed: int, latest: float) -> list[Trial]:
    """All trials: the faults in turn, each going round its targets in an order of its own."""
    generator = random.Random(seed)
    rounds = {fault.name: [name for name in fault.targets if not targets or name in targets] for fault in choice}
    for names in rounds.values():
        generator.shuffle(names)
    usable = [fault for fault in choice if rounds[fault.name]]
    trials = []
    for number in range(count):
        fault = usable[number % len(usable)]
        names = rounds[fault.name]
        target = TARGETS[names[number // len(usable) % len(names)]]
        fraction = latest * max(generator.random(), generator.random())  # rather late: a stage begins with imports
        trials.append(Trial(number, fault, target, fraction, generator.randrange(1 << 30)))
    return trials


def attempt(trial: Trial, fraction: float, base: Base, folder: Path, host: Host, whole: bool) -> Outcome:
    """One fault and all that follows; `injected` is false when the stage had ended before the moment."""
    began = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    run = Run(folder, base, trial.target, host.root, trial.seed, trial.fault.executor)
    outcome = Outcome(trial, moment=fraction * base.seconds[trial.target.name], notes=run.notes)
    try:
        disturb(run, trial.fault, outcome.moment)
        outcome.injected = True
        run.finish(trial.fault.unlock, whole)
        outcome.bill = judge(run, trial.fault, outcome)
        outcome.problems += checks.summaries(run.folder) if whole else []
    except Missed:
        pass
    except Unable as error:
        outcome.notes.append(f"not possible here: {error}")
    except Lost as error:
        outcome.injected = True
        outcome.problems.append(str(error))
    except Exception:  # a trial that the campaign itself cannot judge must not end the others
        outcome.injected = True
        outcome.problems.append(traceback.format_exc())
    finally:
        outcome.reruns = run.reruns
        orphans = run.close()
    if outcome.injected:
        outcome.problems += [f"orphan process {orphan}" for orphan in orphans]
    outcome.seconds = time.monotonic() - began
    if not outcome.problems and not outcome.unclear:
        shutil.rmtree(folder)
    return outcome


def disturb(run: Run, fault: Fault, moment: float) -> None:
    """Start Snakemake, inject the fault, wait for Snakemake's end, repair."""
    fault.prepare(run)
    run.start(*run.wanted, *fault.arguments)
    try:
        fault.inject(run, moment)
    finally:
        code = run.wait()
    fault.after(run, code)


def judge(run: Run, fault: Fault, outcome: Outcome) -> checks.Bill:
    """Everything that must hold once the experiment is finished."""
    run.await_rest()
    outcome.problems += checks.same_results(run.folder, run.base.workflow.folder, run.base.results)
    outcome.problems += checks.locks(run.folder)
    outcome.notes += [f"left over: {path}" for path in checks.leftovers(run.folder)]
    found = checks.bill(run.folder, run.started, run.watch.stages, WATTS, METER)
    outcome.problems += found.problems
    if found.difference_pct > checks.CLOCK_PCT:
        outcome.notes.append(f"not on the bill: {found.clock - found.seconds:.2f} s")
    return found


def run_trial(trial: Trial, base: Base, folder: Path, host: Host, whole: bool = True) -> Outcome:
    """Try at earlier and earlier moments until the stage is met alive. With `whole`, all default targets are made then."""
    fraction = trial.fraction
    for _ in range(TRIES):
        outcome = attempt(trial, fraction, base, folder / f"trial-{trial.number:03d}", host, whole)
        if outcome.injected:
            break
        fraction *= EARLIER
    return outcome


def table(outcomes: list[Outcome]) -> str:
    """A line per fault, and their sum."""
    rows = [COLUMNS]
    names = list(dict.fromkeys(o.trial.fault.name for o in outcomes))
    for name in [*names, "all"]:
        mine = [o for o in outcomes if o.injected and name in (o.trial.fault.name, "all")]
        bills = [o.bill for o in mine if o.bill]
        lost = sum(bool(o.problems) for o in mine)
        rows.append(
            (
                name,
                *(str(n) for n in (len(mine), len(mine) - lost, lost, sum(o.unclear for o in mine))),
                str(max((o.reruns for o in mine), default=0)),
                f"{max((b.difference_pct for b in bills), default=0.0):.2f}",
                f"{sum(o.seconds for o in mine) / len(mine):.0f}" if mine else "-",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = [
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(r, widths, strict=True)))
        for r in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def say(outcome: Outcome, count: int) -> None:
    """One line, and what is to be known beyond it."""
    trial = outcome.trial
    verdict = "not injected" if not outcome.injected else "LOST" if outcome.problems else "survived"
    sums = ""
    if bill := outcome.bill:
        sums = f", clock {bill.clock:.2f} s, records {bill.seconds:.2f} s, joules / watts {bill.joules / WATTS:.2f} s"
    print(
        f"{trial.number + 1}/{count} {trial.fault.name}, {trial.target.name} at {outcome.moment:.1f} s: {verdict} "
        f"({outcome.seconds:.0f} s, {outcome.reruns} rerun(s){sums})",
        flush=True,
    )
    for text in [*outcome.problems, *outcome.notes]:
        print("    " + text.replace("\n", "\n    "), flush=True)


def main() -> int:
    """Run the command line; returns 1 when a trial was lost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults.campaign", allow_abbrev=False)
    parser.add_argument("--count", type=int, default=90, help="faults on this machine")
    parser.add_argument(
        "--slurm", type=int, default=21, help="faults on a Slurm that is started for it (root, Debian's packages)"
    )
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", nargs="+", default=[], choices=[fault.name for fault in faults()], metavar="NAME")
    parser.add_argument("--target", nargs="+", default=[], choices=list(TARGETS), metavar="NAME")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "fault-campaign")
    parser.add_argument("--base", type=Path, help="an undisturbed run that is there, or where to make it")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    host = Host(Path(tempfile.mkdtemp(prefix="power-", dir=options.folder)))
    existing = REPOSITORY / "results" / "downloads"
    downloads = existing if existing.is_dir() else options.folder / "downloads"
    print(f"seed {options.seed}, {options.count} + {options.slurm} faults, in {options.folder}", flush=True)
    outcomes: list[Outcome] = []
    try:
        base = Base.make(options.base or options.folder / "base", downloads, host.root)
        for outcome in chain(here(options, base, host), on_slurm(options, base, host)):
            outcomes.append(outcome)
            say(outcome, options.count + options.slurm)
        if checks.results(base.workflow.folder) != base.results:
            raise AssertionError("the campaign has damaged the undisturbed run: delete it")
    finally:
        host.stop()
        shutil.rmtree(host.root)
        print(f"\n{table(outcomes)}")
    return 1 if any(outcome.problems for outcome in outcomes) else 0


def here(options: argparse.Namespace, base: Base, host: Host) -> Iterator[Outcome]:
    """The faults of this machine, several at a time."""
    choice = [fault for fault in faults() if not options.only or fault.name in options.only]
    latest = LATEST if options.jobs == 1 else LATEST_OF_MANY
    trials = plan(choice, options.target, options.count, options.seed, latest)
    with ThreadPoolExecutor(options.jobs) as pool:
        yield from pool.map(lambda trial: run_trial(trial, base, options.folder, host), trials)


def on_slurm(options: argparse.Namespace, base: Base, host: Host) -> Iterator[Outcome]:
    """The faults of a cluster, one at a time: they disturb all of it."""
    if not options.slurm:
        return
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, Cluster(Path(folder)) as cluster:
        for trial in plan(slurm_faults(cluster), options.target, options.slurm, options.seed, LATEST):
            yield run_trial(replace(trial, number=options.count + trial.number), base, options.folder, host)


if __name__ == "__main__":
    sys.exit(main())
