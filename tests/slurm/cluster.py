"""A Slurm cluster on this machine, started and stopped by tests: three nodes, five partitions, fake GPUs.

Each daemon runs under a small holder process (processes.py, run as a program), which ends all that the daemon leaves behind.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from types import TracebackType

from tests.slurm import processes
from tests.slurm.configuration import (
    ACCOUNTING,
    CGROUP_CONF,
    GRES_CONF,
    NO_ACCOUNTING,
    NODES,
    SLURM_CONF,
    SLURMDBD_CONF,
    SlurmError,
    lock,
    proctrack,
    replace,
    restore,
)
from tests.slurm.processes import answers, binary, clean_environment, descendants, free_ports, kill, program, ticks

PACKAGES = {
    "munge": ("munged",),
    "slurm-wlm": ("slurmctld", "slurmd", "slurmstepd", "sinfo", "scontrol", "sbatch", "srun", "sacct", "squeue", "scancel"),
}
ACCOUNTING_PACKAGES = {
    "slurmdbd": ("slurmdbd",),
    "mariadb-server": ("mariadbd", "mariadb-install-db"),
    "slurm-wlm": ("sacctmgr",),
}
LONGEST_FOLDER = 70  # Characters: the sockets below it have at most 107 in their path.
DATABASE_OPTIONS = (
    "--skip-networking",
    "--innodb-buffer-pool-size=64M",
    "--innodb-lock-wait-timeout=900",
    "--innodb-flush-log-at-trx-commit=0",
)


class Cluster:
    """A Slurm cluster on this machine, with its state under `folder`.

    slurm.conf is in /etc/slurm: the slurm executor plugin of Snakemake drops SLURM_CONF from the environment. Start it in
    the main thread: the daemons end when the thread that started them does.
    """

    def __init__(self, folder: Path, accounting: bool = False) -> None:
        self.folder = Path(folder).resolve()
        self.accounting = accounting
        self.name = f"test{secrets.token_hex(6)}"
        self._holders: dict[str, list[subprocess.Popen[bytes]]] = {}
        self._lock: int | None = None
        self._ports: dict[str, int] = {}

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start every daemon and wait until all nodes are idle."""
        _check(self.folder, self.accounting)
        self._lock = lock()
        try:
            self._write_files()
            self._launch("munged", *self._munged())
            self._await("munged", lambda: answers(self.folder / "munge.socket"))
            if self.accounting:
                self._start_accounting()
            self._launch("slurmctld", "slurmctld", "-D", "-c")
            self._await("slurmctld", lambda: answers(self._ports["ctld_port"]))
            for node in NODES:
                self._launch(node, "slurmd", "-D", "-c", "-N", node)
            for node in NODES:
                self._await(node, partial(self._is_idle, node))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all that start() and the jobs have started, and put the configuration of the system back."""
        if self._lock is None:
            return
        try:
            for name in list(self._holders):
                self._end(name)
        finally:
            restore("slurm.conf")
            restore("gres.conf")
            restore("cgroup.conf")
            os.close(self._lock)
            self._lock = None
        if strays := self.stray_processes():
            raise SlurmError(f"processes are left after the stop of the cluster: {strays}")

    def run(self, *command: str, check: bool = True) -> str:
        """What a Slurm command prints."""
        result = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if check and result.returncode:
            raise SlurmError(f"{' '.join(command)}: exit status {result.returncode}: {result.stderr.strip()}")
        return result.stdout

    def stop_daemon(self, name: str) -> None:
        """An outage of `slurmctld` or `slurmdbd`, until start_daemon; it saves its state, as a stopped service does."""
        for pid in (pid for holder in self._holders[name] for pid in descendants(holder.pid)):
            os.kill(pid, signal.SIGTERM)
        for holder in self._holders.pop(name):  # it ends with its daemon
            holder.wait(timeout=60)

    def start_daemon(self, name: str) -> None:
        """Start `slurmctld` or `slurmdbd` again, with what it knew; wait until it listens."""
        self._launch(name, name, "-D", **(self._database() if name == "slurmdbd" else {}))
        self._await(name, lambda: answers(self._ports["dbd_port" if name == "slurmdbd" else "ctld_port"]))

    def start_slurmd(self, node: str) -> None:
        """Start the daemon of a node again; wait until it listens (the node may take longer to be idle)."""
        if self._slurmd(node):
            raise SlurmError(f"slurmd of {node} already runs")
        self._launch(node, "slurmd", "-D", "-N", node)
        self._await(node, lambda: answers(self._ports[f"{node}_port"]))

    def kill_slurmd(self, node: str) -> None:
        """Kill the daemon of a node, not its jobs."""
        while pids := self._slurmd(node):
            kill(pids)
            time.sleep(0.02)

    def crash_node(self, node: str) -> None:
        """Kill the daemon of a node and every process of its jobs, as a power loss would."""
        self._end(node)

    def wait_for_nodes(self, state: str = "idle", timeout: float = 60, nodes: Collection[str] = NODES) -> None:
        """Wait until nodes are in a state (`down` is also what does not respond)."""
        seen: dict[str, str] = {}
        for _ in ticks(timeout):
            seen = {node: self._node_state(node) for node in nodes}
            if set(seen.values()) == {state}:
                return
        raise SlurmError(f"nodes are not {state} after {timeout} s: {seen}")

    def wait_for_job(self, job_id: str | int, states: str | Collection[str], timeout: float) -> str:
        """Wait until a job is in one of the states; return which."""
        wanted = {states} if isinstance(states, str) else set(states)
        job = ""
        for _ in ticks(timeout):
            job = self.run("scontrol", "--oneliner", "show", "job", str(job_id), check=False)
            state = next((word.removeprefix("JobState=") for word in job.split() if word.startswith("JobState=")), "")
            if state in wanted:
                return state
        raise SlurmError(f"job {job_id} is in none of {sorted(wanted)} after {timeout} s: {job.strip()}")

    def stray_processes(self) -> list[int]:
        """Processes of the daemons and of jobs; after stop() there are none."""
        found = {holder.pid for holders in self._holders.values() for holder in holders if holder.poll() is None}
        for holder in list(found):
            found.update(descendants(holder))
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # It has ended, or is a zombie.
                if self.name.encode() in (folder / "environ").read_bytes():
                    found.add(int(folder.name))
        return sorted(found - {os.getpid()})

    def _write_files(self) -> None:
        for name in ("state", "spool", "log", "mysql"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in ("state", "log", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        for gpu in (self.folder / "l40s0", self.folder / "l40s1"):  # Without devices there is no CUDA_VISIBLE_DEVICES.
            gpu.unlink(missing_ok=True)
            os.mknod(gpu, stat.S_IFCHR | 0o600, Path(os.devnull).stat().st_rdev)
        self._write_private("munge.key", secrets.token_hex(64))
        self._ports = dict(zip(("ctld_port", "dbd_port", *(f"{node}_port" for node in NODES)), free_ports(), strict=False))
        values = self._ports | {
            "proctrack": proctrack(),
            "task": "cgroup" if self.accounting and proctrack() == "cgroup" else "none",
            "name": self.name,
            "folder": self.folder,
            "host": socket.gethostname().split(".")[0],
        }
        accounting = (ACCOUNTING if self.accounting else NO_ACCOUNTING).format(**values)
        replace("slurm.conf", SLURM_CONF.format(**values, accounting=accounting))
        replace("gres.conf", GRES_CONF.format(**values))
        replace("cgroup.conf", CGROUP_CONF)
        self._write_private("slurmdbd.conf", SLURMDBD_CONF.format(**values))

    def _write_private(self, name: str, text: str) -> None:
        (self.folder / name).unlink(missing_ok=True)
        (self.folder / name).touch(mode=0o600)
        (self.folder / name).write_text(text)

    def _munged(self) -> list[str]:
        names = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "seed-file": "munge.seed"}
        return ["munged", "--foreground", "--force", *(f"--{option}={self.folder / name}" for option, name in names.items())]

    def _start_accounting(self) -> None:
        data, database = f"--datadir={self.folder / 'mysql'}", self.folder / "mysql.socket"
        install = ("mariadb-install-db", "--no-defaults", "--user=root", data, "--auth-root-authentication-method=socket")
        self.run(*install, "--skip-test-db", "--skip-name-resolve")
        options = ("--no-defaults", "--user=root", data, f"--socket={database}", f"--pid-file={self.folder / 'mysql.pid'}")
        self._launch("mariadbd", "mariadbd", *options, *DATABASE_OPTIONS)
        self._await("mariadbd", lambda: answers(database))
        self.start_daemon("slurmdbd")
        self.run("sacctmgr", "-i", "add", "cluster", self.name)
        self.run("sacctmgr", "-i", "add", "account", "default", f"cluster={self.name}")
        self.run("sacctmgr", "-i", "add", "user", "root", "account=default", f"cluster={self.name}")
        self.run("sacctmgr", "-i", "modify", "user", "root", f"cluster={self.name}", "set", "defaultaccount=default")

    def _database(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "MYSQL_UNIX_PORT": str(self.folder / "mysql.socket")}

    def _launch(self, name: str, *command: str, **environment: str) -> None:
        holder = [sys.executable, "-I", processes.__file__, str(binary(command[0])), *command[1:]]
        with (self.folder / "log" / f"{name}.out").open("ab") as output:
            process = subprocess.Popen(
                holder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=clean_environment() | {"TEST_CLUSTER": self.name} | environment,
                start_new_session=True,
            )
        self._holders.setdefault(name, []).append(process)

    def _await(self, name: str, ready: Callable[[], bool], timeout: float = 60) -> None:
        for _ in ticks(timeout, pause=0.1):
            if ready():
                return
            if self._holders[name][-1].poll() is not None:
                break
        text = (self.folder / "log" / f"{name}.out").read_text(errors="replace")
        raise SlurmError(f"{name} does not come up; its last lines:\n" + "\n".join(text.splitlines()[-15:]))

    def _end(self, name: str) -> None:
        holders = self._holders.pop(name, [])
        for holder in holders:
            holder.terminate()
        for holder in holders:
            holder.wait(timeout=30)

    def _slurmd(self, node: str) -> list[int]:
        return [p for holder in self._holders.get(node, []) for p in descendants(holder.pid) if program(p) == "slurmd"]

    def _is_idle(self, node: str) -> bool:
        return self._node_state(node) == "idle"

    def _node_state(self, node: str) -> str:
        """As scontrol says it: sinfo may go on saying `mixed` long after the last job has ended."""
        found = re.search(r" State=(\w+)", self.run("scontrol", "--oneliner", "show", "node", node, check=False))
        return found[1].lower() if found else ""


def _check(folder: Path, accounting: bool) -> None:
    wanted = PACKAGES.items() | (ACCOUNTING_PACKAGES.items() if accounting else set())
    missing = {package for package, binaries in wanted if not all(map(binary, binaries))}
    if missing:
        raise SlurmError(f"no Slurm here, missing Debian packages: {' '.join(sorted(missing))}")
    if os.geteuid():
        raise SlurmError("the test cluster needs root")
    if len(str(folder)) > LONGEST_FOLDER:
        raise SlurmError(f"path too long for the sockets below it ({LONGEST_FOLDER} characters at most): {folder}")
