"""A Slurm cluster on this machine, started and stopped by tests: two nodes, four partitions, fake GPUs.

Each daemon runs under a small holder process (this file, run as a program). The holder is a subreaper: whatever the
daemon leaves behind (slurmstepd, jobs, processes that have called setsid) becomes its child and ends with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType

CONFIG = Path("/etc/slurm")
MARK = "# Written by the test cluster; removed when it stops.\n"
ASIDE = ".moved-by-test-cluster"
NODES = ("gpu1", "cpu1")
SYSTEM_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", "/sbin"))
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
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36

# cred_expire is also how long a requeued job waits before it starts again (120 s by default). GraceTime=0: a preempted job
# gets SIGTERM, KillWait later SIGKILL, and is requeued. With more, a job that ends on the SIGTERM is not requeued (22.05).
SLURM_CONF = """
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=15
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
MinJobAge=3600
OverTimeLimit=0
KillWait=10
SlurmdTimeout=12
SlurmdParameters=config_overrides
GresTypes=gpu
{accounting}
NodeName=DEFAULT CPUs=4 RealMemory=8000 State=UNKNOWN
NodeName=gpu1 NodeHostname={host} NodeAddr=127.0.0.1 Port={gpu1_port} Gres=gpu:l40s:2
NodeName=cpu1 NodeHostname={host} NodeAddr=127.0.0.1 Port={cpu1_port}
PartitionName=DEFAULT State=UP MaxTime=INFINITE DefMemPerCPU=500 GraceTime=0 PriorityTier=1 PreemptMode=REQUEUE
PartitionName=batch Nodes=ALL Default=YES
PartitionName=urgent Nodes=ALL PriorityTier=10
PartitionName=gpu Nodes=gpu1
PartitionName=cpu Nodes=cpu1
"""
GRES_CONF = "NodeName=gpu1 Name=gpu Type=l40s File={folder}/l40s[0-1]\n"
NO_ACCOUNTING = "AccountingStorageType=accounting_storage/none"
ACCOUNTING = """AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd_port}
AccountingStoragePass={folder}/munge.socket
AccountingStorageEnforce=associations"""
SLURMDBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={dbd_port}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
"""
DATABASE_OPTIONS = (
    "--skip-networking",
    "--innodb-buffer-pool-size=64M",
    "--innodb-lock-wait-timeout=900",
    "--innodb-flush-log-at-trx-commit=0",
)


class SlurmError(RuntimeError):
    """The cluster or one of its commands does not work."""


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
        self._lock = _lock()
        try:
            self._write_files()
            self._launch("munged", *self._munged())
            self._await("munged", lambda: _answers(self.folder / "munge.socket"))
            if self.accounting:
                self._start_accounting()
            self._launch("slurmctld", "slurmctld", "-D", "-c")
            self._await("slurmctld", lambda: _answers(self._ports["ctld_port"]))
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
            _restore("slurm.conf")
            _restore("gres.conf")
            os.close(self._lock)
            self._lock = None
        if strays := self.stray_processes():
            raise SlurmError(f"processes are left after the stop of the cluster: {strays}")

    def run(self, *command: str, check: bool = True) -> str:
        """What a Slurm command prints."""
        result = subprocess.run(command, env=_environment(), capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if check and result.returncode:
            raise SlurmError(f"{' '.join(command)}: exit status {result.returncode}: {result.stderr.strip()}")
        return result.stdout

    def start_slurmd(self, node: str) -> None:
        """Start the daemon of a node again; wait until it listens (the node may take longer to be idle)."""
        if self._slurmd(node):
            raise SlurmError(f"slurmd of {node} already runs")
        self._launch(node, "slurmd", "-D", "-N", node)
        self._await(node, lambda: _answers(self._ports[f"{node}_port"]))

    def kill_slurmd(self, node: str) -> None:
        """Kill the daemon of a node, not its jobs."""
        while pids := self._slurmd(node):
            _kill(pids)
            time.sleep(0.02)

    def crash_node(self, node: str) -> None:
        """Kill the daemon of a node and every process of its jobs, as a power loss would."""
        self._end(node)

    def wait_for_nodes(self, state: str = "idle", timeout: float = 60, nodes: Collection[str] = NODES) -> None:
        """Wait until nodes are in a state (`down` is also what does not respond)."""
        seen: dict[str, str] = {}
        for _ in _ticks(timeout):
            seen = {node: self._node_state(node) for node in nodes}
            if set(seen.values()) == {state}:
                return
        raise SlurmError(f"nodes are not {state} after {timeout} s: {seen}")

    def wait_for_job(self, job_id: str | int, states: str | Collection[str], timeout: float) -> str:
        """Wait until a job is in one of the states; return which."""
        wanted = {states} if isinstance(states, str) else set(states)
        job = ""
        for _ in _ticks(timeout):
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
        self._ports = dict(zip(("ctld_port", "dbd_port", *(f"{node}_port" for node in NODES)), _free_ports(), strict=False))
        values = self._ports | {"name": self.name, "folder": self.folder, "host": socket.gethostname().split(".")[0]}
        accounting = (ACCOUNTING if self.accounting else NO_ACCOUNTING).format(**values)
        _replace("slurm.conf", SLURM_CONF.format(**values, accounting=accounting))
        _replace("gres.conf", GRES_CONF.format(**values))
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
        self._await("mariadbd", lambda: _answers(database))
        environment = {"SLURM_CONF": str(self.folder / "slurm.conf"), "MYSQL_UNIX_PORT": str(database)}
        self._launch("slurmdbd", "slurmdbd", "-D", **environment)
        self._await("slurmdbd", lambda: _answers(self._ports["dbd_port"]))
        self.run("sacctmgr", "-i", "add", "cluster", self.name)
        self.run("sacctmgr", "-i", "add", "account", "default", f"cluster={self.name}")
        self.run("sacctmgr", "-i", "add", "user", "root", "account=default", f"cluster={self.name}")
        self.run("sacctmgr", "-i", "modify", "user", "root", f"cluster={self.name}", "set", "defaultaccount=default")

    def _launch(self, name: str, *command: str, **environment: str) -> None:
        holder = [sys.executable, "-I", __file__, str(_binary(command[0])), *command[1:]]
        with (self.folder / "log" / f"{name}.out").open("ab") as output:
            process = subprocess.Popen(
                holder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_environment() | {"TEST_CLUSTER": self.name} | environment,
                start_new_session=True,
            )
        self._holders.setdefault(name, []).append(process)

    def _await(self, name: str, ready: Callable[[], bool], timeout: float = 60) -> None:
        for _ in _ticks(timeout, pause=0.1):
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
        return [p for holder in self._holders.get(node, []) for p in descendants(holder.pid) if _program(p) == "slurmd"]

    def _is_idle(self, node: str) -> bool:
        return self._node_state(node) == "idle"

    def _node_state(self, node: str) -> str:
        """As scontrol says it: sinfo may go on saying `mixed` long after the last job has ended."""
        found = re.search(r" State=(\w+)", self.run("scontrol", "--oneliner", "show", "node", node, check=False))
        return found[1].lower() if found else ""


def _check(folder: Path, accounting: bool) -> None:
    wanted = PACKAGES.items() | (ACCOUNTING_PACKAGES.items() if accounting else set())
    missing = {package for package, binaries in wanted if not all(map(_binary, binaries))}
    if missing:
        raise SlurmError(f"no Slurm here, missing Debian packages: {' '.join(sorted(missing))}")
    if os.geteuid():
        raise SlurmError("the test cluster needs root")
    if len(str(folder)) > LONGEST_FOLDER:
        raise SlurmError(f"path too long for the sockets below it ({LONGEST_FOLDER} characters at most): {folder}")


def hold(command: list[str]) -> None:
    """Run a daemon until neither it nor anything it has left behind is alive; on SIGTERM, kill all of that."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # Tests that are killed leave no cluster behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        subprocess.Popen(command)
        while True:
            os.wait()
    except ChildProcessError:
        return
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        daemons = ("slurmd", "slurmstepd")  # First, so that they do not report what happens to their jobs.
        for _ in _ticks(20, pause=0.02):
            pids = descendants(os.getpid())
            if not pids:
                break
            _kill(sorted(pids, key=lambda pid: _program(pid) not in daemons))
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # No zombies for an init that does not care for them.
                pass


def descendants(root: int) -> list[int]:
    """Processes below `root`, without zombies."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                children.setdefault(int(parent), []).append(int(folder.name))
    found = list(children.get(root, []))
    for pid in found:  # Grows while it is read.
        found.extend(children.get(pid, []))
    return found


def _kill(pids: Collection[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _program(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _binary(name: str) -> str | None:
    return shutil.which(name, path=SYSTEM_PATH)


def _environment() -> dict[str, str]:
    """Without the settings of a Slurm job that the tests may run in."""
    prefixes = ("SLURM", "SBATCH_", "SRUN_", "SINFO_", "SQUEUE_", "SCANCEL_", "SACCT_")
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)} | {"PATH": SYSTEM_PATH}


def _ticks(timeout: float, pause: float = 0.25) -> Iterator[None]:
    """At least once, then every `pause` seconds until the time is over."""
    end = time.monotonic() + timeout
    while True:
        yield
        if time.monotonic() > end:
            return
        time.sleep(pause)


def _answers(address: Path | int) -> bool:
    """Whether something listens at a socket file or a local port."""
    family = socket.AF_INET if isinstance(address, int) else socket.AF_UNIX
    with socket.socket(family) as client:
        return client.connect_ex(("127.0.0.1", address) if isinstance(address, int) else str(address)) == 0


def _free_ports() -> Iterator[int]:
    """Below the range of outgoing connections, so that they are still free when a daemon starts again."""
    for port in random.sample(range(10000, 32000), 1000):
        with socket.socket() as server, contextlib.suppress(OSError):
            server.bind(("127.0.0.1", port))
            yield port


def _lock() -> int:
    """/etc/slurm has room for one cluster at a time; the lock ends with the process that has it."""
    CONFIG.mkdir(exist_ok=True)
    lock = os.open(CONFIG, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise SlurmError(f"another test cluster runs ({CONFIG} is locked)") from None
    return lock


def _ours(path: Path) -> bool:
    return path.exists() and path.read_text(errors="replace").startswith(MARK)


def _replace(name: str, text: str) -> None:
    """Write a file of the configuration; one that is not ours moves aside."""
    path = CONFIG / name
    if path.exists() and not _ours(path):
        path.rename(path.with_name(name + ASIDE))
    path.write_text(MARK + text)


def _restore(name: str) -> None:
    path = CONFIG / name
    if _ours(path):
        path.unlink()
    aside = path.with_name(name + ASIDE)
    if aside.exists() and not path.exists():
        aside.rename(path)


if __name__ == "__main__":
    hold(sys.argv[1:])
