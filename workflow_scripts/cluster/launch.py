"""Start a stage in several processes, on one node or on all nodes of a Slurm job.

    python -m workflow_scripts.cluster.launch --nodes N --processes P -- -m MODULE ARGUMENTS …

Runs torchrun with P processes per node. On several nodes srun starts one such launcher per node of the allocation, each under
a meter of its own (energy.follower) that adds its host's energy to the attempt.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from types import FrameType

from workflow_scripts.energy.child import Child, exit_code

SECONDS_TO_CHECKPOINT = 600  # from SIGTERM to SIGKILL; Slurm's own limit is usually nearer


def main() -> int:
    """Run the stage; returns its exit code."""
    split = sys.argv.index("--")
    parser = argparse.ArgumentParser(prog="workflow_scripts.cluster.launch", allow_abbrev=False)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--rendezvous", help="host:port that the nodes meet at; set by the launcher itself")
    options, stage = parser.parse_args(sys.argv[1:split]), sys.argv[split + 1 :]
    if options.nodes > 1 and options.rendezvous is None:
        command = on_every_node(options.nodes, options.processes, stage)
        # the variables of the step that this runs in describe one node of the job
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SRUN_", "SBATCH_"))}
        return step(command, environment)
    if threads := os.environ.get("OMP_NUM_THREADS"):
        os.environ["OMP_NUM_THREADS"] = str(max(1, int(threads) // options.processes))
    meet = ["--standalone"]
    if options.rendezvous:
        meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint={options.rendezvous}", f"--rdzv-id={os.environ['SLURM_JOB_ID']}"]
    sizes = [f"--nnodes={options.nodes}", f"--nproc-per-node={options.processes}"]
    return torchrun([*sizes, f"--shutdown-timeout={SECONDS_TO_CHECKPOINT}", *meet, *stage])


def on_every_node(nodes: int, processes: int, stage: list[str]) -> list[str]:
    """The command that starts this launcher on every node. Exits with one error line outside a Slurm job of as many."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        sys.exit(
            f"error: training.num_nodes = {nodes} needs a Slurm job of {nodes} nodes: run with --executor slurm, or set it to 1"
        )
    names = _output("squeue", "--noheader", "--jobs", job, "--format=%N").strip()
    hosts = _output("scontrol", "show", "hostnames", names).split()
    if len(hosts) != nodes:
        sys.exit(f"error: training.num_nodes = {nodes}, but Slurm job {job} has {len(hosts)} node(s): {', '.join(hosts)}")
    return [
        *("srun", f"--jobid={job}", "--overlap", "--mem=0", f"--nodes={nodes}", f"--ntasks={nodes}"),
        *("--ntasks-per-node=1", "--kill-on-bad-exit=1"),
        *(sys.executable, "-m", "workflow_scripts.energy.follower", "--"),
        *(sys.executable, "-m", "workflow_scripts.cluster.launch", f"--nodes={nodes}", f"--processes={processes}"),
        *(f"--rendezvous={_address(hosts[0])}:{20000 + int(job) % 20000}", "--", *stage),
    ]


def step(command: list[str], environment: dict[str, str]) -> int:
    """Run srun. On SIGTERM it would kill its tasks at once; SIGUSR1 it passes on to the followers, who know what is meant."""
    child = Child(command, sys.stdout.buffer, environment, orphaned=signal.SIGTERM)  # srun must live to end its tasks

    def tell(signum: int, frame: FrameType | None) -> None:
        child.send(signal.SIGUSR1)
        child.received = signum  # this is what the exit code says

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, tell)
    return exit_code(child.finish())


def torchrun(arguments: list[str]) -> int:
    """Run torchrun in this process; a failed worker is named in one line instead of torchrun's report."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.main(arguments)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        print(f"process {rank} of the stage ended with code {code}; the others were stopped", file=sys.stderr)
        return code
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    return 0


def _address(node: str) -> str:
    """Where Slurm itself reaches a node."""
    words = _output("scontrol", "--oneliner", "show", "node", node).split()
    return next((word.partition("=")[2] for word in words if word.startswith("NodeAddr=")), node)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
