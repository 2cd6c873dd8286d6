"""The meter of a further host of a stage that runs on several: adds its host's energy to the running attempt.

    srun … python -m workflow_scripts.energy.follower -- COMMAND …

Started on every node by the launcher, inside the attempt of the stage's own meter, which tells it by METER_* variables where
to write. On the stage's own host, and where another follower already measures this host, it only runs the command. SIGUSR1,
by which the launcher says it through srun, is SIGTERM for the command.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from workflow_scripts.energy.child import Child, exit_code
from workflow_scripts.energy.ledger import LedgerWriter
from workflow_scripts.energy.neighbours import Neighbours
from workflow_scripts.energy.pauses import Pauses
from workflow_scripts.energy.sampler import Sampler
from workflow_scripts.energy.state import HOSTS_VARIABLE, host_identity


def main() -> int:
    """Run the command after `--`; returns its exit code."""
    ledger = claim_host()
    options, hosts = json.loads(os.environ["METER_OPTIONS"]), Path(os.environ[HOSTS_VARIABLE])
    sampler = Sampler(options, hosts) if ledger is not None else None
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # what runs below inherits it: some clusters signal all processes of a step
    child = Child(sys.argv[sys.argv.index("--") + 1 :], sys.stdout.buffer, os.environ)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, frame: child.send(signum))
    signal.signal(signal.SIGUSR1, lambda signum, frame: child.send(signal.SIGTERM))
    return exit_code(child.finish() if ledger is None or sampler is None else measure(child, ledger, sampler))


def claim_host() -> Path | None:
    """The ledger to write, or None when this host is measured already."""
    host = host_identity()
    if host == os.environ["METER_HOST"]:
        return None
    folder = Path(os.environ["METER_LEDGERS"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{os.environ['METER_ATTEMPT']}.{host}.jsonl"
    try:
        path.open("x").close()
    except FileExistsError:
        return None
    return path


def measure(child: Child, ledger: Path, sampler: Sampler) -> dict[str, Any]:
    """Sample this host until the command ends; returns its outcome."""
    begin = flushed = time.monotonic()
    flush = json.loads(os.environ["METER_OPTIONS"])["flush_seconds"]
    start = {
        "stage": os.environ["METER_STAGE"],
        "attempt": os.environ["METER_ATTEMPT"],
        "host": socket.gethostname(),
        "power_model": dataclasses.asdict(sampler.model) if sampler.model else None,
        "time": time.time(),
        "devices": sampler.devices(),
    }
    writer, neighbours, pauses = LedgerWriter(ledger, start), Neighbours(os.environ["METER_STAGE"]), Pauses()

    def line(now: float, final: bool = False) -> dict[str, Any]:
        content = sampler.line(now, begin, final)
        pauses.take_out(content)
        return content | {"warnings": [*content["warnings"], *neighbours.warnings()]}

    sampler.start(begin)
    while not child.wait(sampler.period):
        now = time.monotonic()
        pauses.without(now, sampler.attributed(sampler.sample(now)))
        if now - flushed >= flush:
            flushed = now
            sampler.read_share(child.pid, now)
            neighbours.look()
            writer.append({"event": "tick", **line(now)})
    ended = time.monotonic()
    sampler.stop(ended)
    sampler.read_share(child.pid, ended)
    pauses.without(ended, sampler.attributed(sampler.figures(ended)))
    sampler.write_csv(ledger.with_suffix(".codecarbon.csv"), ended - begin, os.environ["METER_STAGE"])
    outcome = child.reap()
    child.sweep()
    neighbours.look()
    writer.append({"event": "end", **line(ended, final=True), **outcome, "devices": sampler.devices()})
    neighbours.leave()
    writer.close()
    return outcome


if __name__ == "__main__":
    sys.exit(main())
