"""What is asked of a Slurm site before the first job, seen by an sbatch that keeps its arguments."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from snakemake.common.tbdstring import TBDString

from workflow_scripts.cluster.site import SiteError, check_site, check_submissions, gpus_asked


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The arguments of each call of sbatch, one line each."""
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    sinfo = sbatch.with_name("sinfo")
    sinfo.write_text('#!/bin/sh\nprintf "%s\\n" "batch* 1-00:00:00" "short 30:00" "long infinite" | grep "${3#--partition=}"\n')
    scontrol = sbatch.with_name("scontrol")
    scontrol.write_text(f"#!/bin/sh\ncat {tmp_path}/scontrol-$1 2>/dev/null\n")
    sacctmgr = sbatch.with_name("sacctmgr")
    sacctmgr.write_text(f"#!/bin/sh\ncat {tmp_path}/limits-$4\n")
    for program in (sbatch, sinfo, scontrol, sacctmgr):
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
    return tmp_path / "asked"


def test_a_size_that_is_not_known_before_the_input_is_not_asked_for(asked: Path) -> None:
    check_site({"student_train": {"mem_mb": TBDString(), "runtime": 60, "nodes": 1, "_cores": 4}}, "squeue")
    assert asked.read_text() == "--test-only --time=60 --nodes=1 --cpus-per-task=4 --wrap=true\n"


def test_all_that_the_executor_will_ask_for_is_asked(asked: Path) -> None:
    resources = {
        "gres": "gpu:l40s:2",
        "nodes": 2,
        "processes": 4,
        "qos": "long",
        "constraint": "ib",
        "slurm_extra": "'--mail-user=a b'",
    }
    check_site({"student_train": resources}, "squeue", ["--reservation=course"])
    (line,) = asked.read_text().splitlines()
    assert line == (
        "--test-only --nodes=2 --gres=gpu:l40s:2 --qos=long --constraint=ib --cpus-per-task=1 --mail-user=a b "
        "--reservation=course --wrap=true"
    )


@pytest.mark.parametrize(("partition", "most"), [(None, 1440), ("short", 30), ("long", 10**6)])
def test_a_time_limit_that_the_partition_does_not_allow_is_refused(asked: Path, partition: str | None, most: int) -> None:
    check_site({"evaluation": {"runtime": most, "slurm_partition": partition}}, "squeue")
    if partition != "long":
        with pytest.raises(SiteError, match=f"asks for {most + 1} minutes.*allows {most}: lower hours or max_hours"):
            check_site({"evaluation": {"runtime": most + 1, "slurm_partition": partition}}, "squeue")


@pytest.mark.parametrize(
    ("resources", "gpus"),
    [
        ({}, 0),
        ({"gpu": 2, "gpu_model": "l40s"}, 2),
        ({"gres": "gpu"}, 1),
        ({"gres": "gpu:3"}, 3),
        ({"gres": "gpu:l40s"}, 1),
        ({"gres": "gpu:1g.10gb:2"}, 2),
        ({"gres": "gpu:l40s:2", "nodes": 3}, 6),
        ({"gres": "license:4"}, 0),
    ],
)
def test_gpus_of_a_request(resources: dict[str, object], gpus: int) -> None:
    assert gpus_asked(resources) == gpus


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"gres": "gpu:1", "nodes": 2, "processes": 4}, r"= 4 processes, but the profile asks for 2 GPU\(s\) in all"),
        ({"gpu": 4, "nodes": 2, "processes": 4}, "`gpu` counts GPUs of the whole job: ask for those of each node, gres=gpu:2"),
    ],
)
def test_gpus_that_do_not_fit_the_processes_are_refused(asked: Path, resources: dict[str, object], message: str) -> None:
    with pytest.raises(SiteError, match=message):
        check_site({"student_train": resources}, "squeue")


def test_a_teacher_may_have_several_gpus_in_one_process(asked: Path) -> None:
    check_site({"cache_logits": {"gres": "gpu:2", "nodes": 1}}, "squeue")
    assert "--gres=gpu:2" in asked.read_text()


def says(asked: Path, **answers: str) -> None:
    """What the site's commands print: scontrol_ping, scontrol_show, limits_assoc, limits_qos."""
    for name, text in answers.items():
        asked.with_name(name.replace("_", "-")).write_text(text)


def refuse(asked: Path, reason: str) -> None:
    """Let sbatch refuse everything."""
    (asked.parent / "bin" / "sbatch").write_text(f"#!/bin/sh\necho '{reason}' >&2\nexit 1\n")


def test_no_answer_is_no_fault_of_the_profile(asked: Path) -> None:
    says(asked, scontrol_ping="Slurmctld(primary) at head is DOWN\n")
    with pytest.raises(SiteError, match=r"no answer from the controller \(slurmctld\): Slurmctld\(primary\) at head is DOWN"):
        check_site({"evaluation": {}}, "squeue")
    says(asked, scontrol_ping="Slurmctld(primary) at head is DOWN\nSlurmctld(backup) at spare is UP\n")
    check_site({"evaluation": {}}, "squeue")
    refuse(asked, "allocation failure: Unable to contact slurm controller (connect failure)")
    with pytest.raises(SiteError, match="no answer from the controller"):
        check_site({"evaluation": {}}, "squeue")


def test_a_full_queue_does_not_stop_the_start(asked: Path) -> None:
    refuse(asked, "AssocMaxSubmitJobLimit allocation failure: Job violates accounting/QOS policy")
    check_site({"evaluation": {}}, "squeue")


@pytest.mark.parametrize(
    ("enforced", "assoc", "qos", "most"),
    [
        ("associations,limits", "7||normal\n", "|\n", 7),
        ("safe", "|9|normal\n", "|\n", 9),
        ("safe", "||normal\n", "5|\n", 5),
        ("safe", "7||\n3||\n", "|\n", 7),
        ("associations", "7||normal\n", "|\n", None),
        ("safe", "||normal\n", "|\n", None),
    ],
    ids=["of the user", "of the group", "of the QOS", "of an account that is not named", "not enforced", "none"],
)
def test_a_queue_shorter_than_max_jobs_is_said(asked: Path, enforced: str, assoc: str, qos: str, most: int | None) -> None:
    says(asked, limits_assoc=assoc, limits_qos=qos)
    says(asked, scontrol_show=f"AccountingStorageEnforce = {enforced}\nClusterName             = test\n")
    requests = {"evaluation": {"slurm_account": None}}
    check_submissions(requests, most or 10**6)
    if most:
        with pytest.raises(
            SiteError, match=rf"takes {most} job\(s\) of this user at once .* but {most + 1} would be submitted"
        ):
            check_submissions(requests, most + 1)
