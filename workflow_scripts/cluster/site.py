"""Checks of a Slurm site before the first job is submitted, so that a wrong setting costs a second and not a queue.

Called from the Snakefile's `onstart` with the planned jobs' resources. Asks Slurm itself (`sbatch --test-only`), once per
distinct request.
"""

from __future__ import annotations

import getpass
import math
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workflow_scripts.energy.state import TOKEN_FOLDER, TOKEN_VARIABLE
from workflow_scripts.errors import UserError
from workflow_scripts.settings.optional import missing_backend, missing_optimizer

# what a resource is called in sbatch
_OPTIONS = {
    "slurm_partition": "--partition",
    "slurm_account": "--account",
    "mem_mb": "--mem",
    "runtime": "--time",
    "nodes": "--nodes",
    "gres": "--gres",
    "qos": "--qos",
    "constraint": "--constraint",
}
_GPU_DEVICES = ("/dev/nvidia0", "/dev/kfd")
_FAULTS = (
    ("account", "account"),
    ("partition", "partition"),
    ("gres", "gpus, gpu_model or partition"),
    ("generic resource", "gpus, gpu_model or partition"),
    ("node configuration", "gpus, gpu_model, cpus, mem_gb or partition"),
    ("memory", "mem_gb"),
    ("time limit", "hours or max_hours"),
    ("qos", "qos"),
    ("feature", "constraint"),
    ("reservation", "slurm-reservation"),
)


# what Slurm's commands say when a daemon does not answer
NO_ANSWER = re.compile(
    r"unable to contact slurm|connection (?:refused|timed out|reset)|communication connection failure|socket timed out|"
    r"zero bytes were transmitted|unable to connect to database|failed to open persistent connection",
    re.IGNORECASE,
)
# a submission that only came too early: others of this user's jobs have to end first
QUEUE_FULL = re.compile(r"(?:Max|Grp)SubmitJob", re.IGNORECASE)


class SiteError(UserError):
    """A setting that this site does not accept."""


def check_site(requests: Mapping[str, Mapping[str, Any]], status_command: str, options: Sequence[str] = ()) -> None:
    """Check the resources of one job per rule, and `options` of sbatch that all of them have.

    Raises SiteError naming the setting, its value and Slurm's words.
    """
    if shutil.which("sbatch") is None:
        raise SiteError(
            "--executor slurm, but there is no sbatch on PATH: run this on a login node of the cluster (perhaps `module load "
            "slurm`), or leave out --executor slurm / --workflow-profile profiles/slurm to run here"
        )
    if (state := _says("scontrol", "ping").strip()) and "UP" not in state:  # sbatch would wait for its answer
        raise SiteError(_unanswered(", ".join(line for line in state.splitlines() if " is " in line)))
    if status_command == "sacct" and (reason := _run("sacct", "-n", "-X", "--starttime=now")):
        if NO_ANSWER.search(reason):
            raise SiteError(f"no answer from accounting (slurmdbd): {reason}: try again when `sacct` answers")
        raise SiteError(
            f"job states are asked of sacct, which says: {reason}: set `accounting: false` in the profile's site block "
            "(without a profile: --slurm-status-command squeue)"
        )
    seen: dict[tuple[str, ...], str] = {}
    for rule, resources in sorted(requests.items()):
        gpus, processes, nodes = gpus_asked(resources), resources.get("processes", 1), resources.get("nodes", 1)
        if "processes" in resources and gpus and gpus != processes:  # of a training; a teacher may be spread over several
            raise SiteError(
                f"rule {rule}: training.num_processes x num_nodes = {processes} processes, but the profile asks for "
                f"{gpus} GPU(s) in all: make `gpus` of the profile's `student` family equal to training.num_processes"
            )
        if nodes > 1 and resources.get("gpu"):
            raise SiteError(
                f"rule {rule}: training.num_nodes = {nodes}, but `gpu` counts GPUs of the whole job: ask for those of each "
                f"node, gres=gpu:{gpus // nodes}, as profiles/slurm does"
            )
        asked = (*_sbatch_options(resources), *options)
        if asked in seen:
            continue
        seen[asked] = rule
        reason = _run("sbatch", "--test-only", *asked, "--wrap=true")
        if reason and not QUEUE_FULL.search(reason):
            raise SiteError(_explain(reason, rule, asked))
        runtime, partition = resources.get("runtime") or 0, resources.get("slurm_partition")
        if runtime > (longest := _longest_minutes(partition)):
            # sbatch takes such a job at most sites (EnforcePartLimits=NO), and it waits for ever
            raise SiteError(
                f"rule {rule}: its last attempt asks for {runtime} minutes, but partition {partition or '(the default)'} "
                f"allows {longest:.0f}: lower hours or max_hours in the profile's site block"
            )


def check_submissions(requests: Mapping[str, Mapping[str, Any]], jobs: int, options: Sequence[str] = ()) -> None:
    """Check that `jobs` may be submitted at once: Slurm refuses the next one, and every refusal would cost an attempt.

    Asks for MaxSubmitJobs of the associations and of the QOS that the jobs name (else of the associations' own), where the site
    enforces limits. Raises SiteError naming the setting.
    """
    config = dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", _says("scontrol", "show", "config"), re.MULTILINE))
    if not {"limits", "safe", "all"} & set(config.get("AccountingStorageEnforce", "").lower().split(",")):
        return
    asked = [option.partition("=")[2] for option in options if option.startswith("--qos=")]
    for account, named in sorted({(r.get("slurm_account") or "", r.get("qos") or "") for r in requests.values()}):
        where = [f"user={getpass.getuser()}", f"cluster={config['ClusterName']}", *([f"account={account}"] if account else [])]
        found = [line.split("|") for line in _limits("assoc", where, "MaxSubmitJobs,GrpSubmitJobs,DefaultQOS").splitlines()]
        # without an account Slurm takes the user's default one, which is not told from the others here
        most = max((_least(words[:2]) for words in found), default=math.inf)
        for qos in {named or next(iter(asked), "")} if named or asked else {words[2] for words in found if words[2]}:
            most = min(most, _least(_limits("qos", [f"name={qos}"], "MaxSubmitJobsPU,GrpSubmitJobs").split("|")))
        if most < jobs:
            raise SiteError(
                f"account {account or '(the default)'} takes {most:.0f} job(s) of this user at once (MaxSubmitJobs), but "
                f"{jobs} would be submitted: set max_jobs of the profile's site block to {most:.0f} (without a profile, "
                "--jobs)"
            )


def gpus_asked(resources: Mapping[str, Any]) -> int:
    """GPUs that a job asks for on all its nodes, by `gpu` (of the job) or `gres` (of each node)."""
    if gpus := resources.get("gpu"):
        return int(gpus)
    found = re.fullmatch(r"gpu(?::(?!\d+$)[\w.]+)?(?::(\d+))?", str(resources.get("gres") or ""))
    return int(found[1] or 1) * int(resources.get("nodes") or 1) if found else 0


def check_writable(folders: Iterable[str]) -> None:
    """Raise SiteError for a folder of the results that cannot be made or written to."""
    for folder in folders:
        path = Path(folder).absolute()
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        probe = existing / f".write-test-{os.getpid()}"
        try:
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise SiteError(
                f"output: {folder} cannot be written to ({existing}: {error.strerror}): set output.root and the other "
                "`output` folders to a place that this user may write to"
            ) from None


def check_sharding(gpus: Mapping[str, int], here: bool) -> None:
    """Check sharded trainings: accelerate shards parameters on GPUs only.

    `gpus` has the GPUs that each such experiment's job asks for; with `here` the jobs run on this machine and use what it
    has. Raises SiteError naming the setting.
    """
    if here and any(Path(device).exists() for device in _GPU_DEVICES):
        return
    for experiment, count in gpus.items():
        if here or not count:
            where = "this machine has none" if here else "the profile asks for gpus: 0 in its `student` family"
            raise SiteError(
                f"experiment {experiment}: training.fsdp = true shards over GPUs, but {where}: give the training GPUs, or set "
                "training.fsdp: false (several processes then hold the whole model each)"
            )


def check_packages(optimizers: Iterable[str], backends: Iterable[tuple[str, str]]) -> None:
    """Raise SiteError for an optimizer, or a generation backend with its key, of planned work that this environment lacks."""
    reasons = [missing_optimizer(name) for name in sorted(set(optimizers))]
    reasons += [missing_backend(key, name) for key, name in sorted(backends)]
    for reason in filter(None, reasons):
        raise SiteError(reason)


def read_modules(path: Path) -> list[str]:
    """Names of environment modules in a file, one per line, `#` begins a comment."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def check_modules(modules: Iterable[str]) -> None:
    """Load the modules once, as every job will: Snakemake goes on without a module that is not there.

    Raises SiteError naming envs/modules.txt and what the module command says.
    """
    names = list(modules)
    script = 'module purge && module load "$@" && echo "$LOADEDMODULES"'
    result = subprocess.run(["bash", "-c", script, "bash", *names], capture_output=True, text=True, check=False)
    said = " ".join(result.stderr.split())
    if "module: command not found" in said:
        raise SiteError(
            "--software-deployment-method env-modules, but a non-interactive bash here has no `module` command: source the "
            "site's init script (perhaps /etc/profile.d/modules.sh) before, or leave the option out"
        )
    loaded = result.stdout.strip().split("\n")[-1].split(":")
    missing = [name for name in names if not any(f"{entry}/".startswith(f"{name}/") for entry in loaded)]
    if result.returncode or missing:
        raise SiteError(
            f"envs/modules.txt: cannot load {', '.join(missing or names)}: {said or 'no reason given'}: list modules that "
            "`module avail` shows"
        )


def announce(root: str) -> None:
    """Leave a token under `root` and in the environment of the jobs, by which a job knows that both see the same folder."""
    token = secrets.token_hex(8)
    path = Path(root, "state", TOKEN_FOLDER, token)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.environ[TOKEN_VARIABLE] = f"{token}@{socket.gethostname()}"


def hint_after_failure(log_folder: Path) -> str | None:
    """What to look at when jobs failed and left no Slurm log."""
    if any(log_folder.rglob("*.log")):
        return None
    return (
        f"No job has left a log in {log_folder}: perhaps the working directory is not shared with the compute nodes. The "
        "checkout, the environment and output.root must be on a file system that all of them mount."
    )


def _sbatch_options(resources: Mapping[str, Any]) -> tuple[str, ...]:
    """What the executor plugin will ask for. Without a profile, memory may not be known before a job's input is: left out."""
    options = [f"{flag}={resources[key]}" for key, flag in _OPTIONS.items() if resources.get(key)]
    options.append(f"--cpus-per-task={resources.get('_cores', 1)}")
    if gpus := resources.get("gpu"):
        model = resources.get("gpu_model")
        options.append(f"--gpus={model}:{gpus}" if model else f"--gpus={gpus}")
    return (*options, *shlex.split(resources.get("slurm_extra") or ""))


def _longest_minutes(partition: str | None) -> float:
    """The longest time limit of a partition, else of the default one; infinite where Slurm does not say."""
    command = ["sinfo", "--noheader", "--format=%P %l", *([f"--partition={partition}"] if partition else [])]
    limits = []
    for line in _says(*command).splitlines():
        name, limit = line.split()
        if partition or name.endswith("*"):
            found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
            days, hours, minutes, _ = (int(part or 0) for part in found.groups()) if found else (0, 0, 0, 0)
            limits.append(1440 * days + 60 * hours + minutes if found else math.inf)
    return max(limits, default=math.inf)


def _says(*command: str) -> str:
    """What a command prints; nothing where there is no such command or it fails."""
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _limits(kind: str, where: Sequence[str], columns: str) -> str:
    return _says("sacctmgr", "--noheader", "--parsable2", "show", kind, "where", *where, f"format={columns}").strip()


def _least(limits: Iterable[str]) -> float:
    return min((float(limit) for limit in limits if limit.strip().isdigit()), default=math.inf)


def _run(*command: str) -> str | None:
    """Standard error of a command that failed, else None."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if result.returncode == 0 else " ".join(result.stderr.split()) or f"exit code {result.returncode}"


def _unanswered(reason: str) -> str:
    return f"no answer from the controller (slurmctld): {reason}: try again when `sinfo` answers"


def _explain(reason: str, rule: str, options: tuple[str, ...]) -> str:
    if NO_ANSWER.search(reason):
        return _unanswered(reason)
    setting = next((name for word, name in _FAULTS if word in reason.lower()), "its resources")
    asked = " ".join(options)
    return f"Slurm refuses the jobs of rule {rule}: {reason} (asked: {asked}). Correct in the profile's site block: {setting}"
