"""Configuration of the test cluster: slurm.conf, gres.conf, slurmdbd.conf, and their place in /etc/slurm."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

CONFIG = Path("/etc/slurm")
MARK = "# Written by the test cluster; removed when it stops.\n"
ASIDE = ".moved-by-test-cluster"
NODES = ("gpu1", "gpu2", "cpu1")

# proctrack/cgroup is what clusters have: a signal reaches the first process of a step only, SIGKILL all. Where the freezer
# of cgroup v1 is not ours, linuxproc: a signal reaches every process.
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
MessageTimeout=4
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/{task}
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
KillWait=3
SlurmdTimeout=12
SlurmdParameters=config_overrides
GresTypes=gpu
{accounting}
NodeName=DEFAULT CPUs=4 RealMemory=8000 State=UNKNOWN
NodeName=gpu1 NodeHostname={host} NodeAddr=127.0.0.1 Port={gpu1_port} Gres=gpu:l40s:2
NodeName=gpu2 NodeHostname={host} NodeAddr=127.0.0.1 Port={gpu2_port} Gres=gpu:l40s:2
NodeName=cpu1 NodeHostname={host} NodeAddr=127.0.0.1 Port={cpu1_port}
PartitionName=DEFAULT State=UP MaxTime=INFINITE DefMemPerCPU=500 GraceTime=0 PriorityTier=1 PreemptMode=REQUEUE
PartitionName=batch Nodes=gpu1,cpu1 Default=YES
PartitionName=urgent Nodes=gpu1,cpu1 PriorityTier=10
PartitionName=gpu Nodes=gpu1 MaxTime=180
PartitionName=pair Nodes=gpu1,gpu2
PartitionName=cpu Nodes=cpu1
"""
GRES_CONF = "NodeName=gpu[1-2] Name=gpu Type=l40s File={folder}/l40s[0-1]\n"
CGROUP_CONF = (
    "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\nCgroupAutomount=no\nConstrainCores=no\nConstrainRAMSpace=yes\n"
)
FREEZER = Path("/sys/fs/cgroup/freezer")
NO_ACCOUNTING = "AccountingStorageType=accounting_storage/none"
ACCOUNTING = """AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd_port}
AccountingStoragePass={folder}/munge.socket
AccountingStorageEnforce=associations,limits"""
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


class SlurmError(RuntimeError):
    """The cluster or one of its commands does not work."""


def lock() -> int:
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


def proctrack() -> str:
    """The plugin that follows the processes of a job: cgroup where groups can be made here."""
    group = FREEZER / f"test-{os.getpid()}"
    try:
        group.mkdir()
        group.rmdir()
    except OSError:
        return "linuxproc"
    return "cgroup"


def replace(name: str, text: str) -> None:
    """Write a file of the configuration; one that is not ours moves aside."""
    path = CONFIG / name
    if path.exists() and not _ours(path):
        path.rename(path.with_name(name + ASIDE))
    path.write_text(MARK + text)


def restore(name: str) -> None:
    path = CONFIG / name
    if _ours(path):
        path.unlink()
    aside = path.with_name(name + ASIDE)
    if aside.exists() and not path.exists():
        aside.rename(path)
