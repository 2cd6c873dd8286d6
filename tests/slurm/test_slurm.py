"""The tiny experiment on a real Slurm: parts, GPU requests, accounting, and what a site refuses."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import WITH_MODULES, Workflow, copy_workflow, needs_modules
from tests.slurm.cluster import Cluster
from tests.slurm.site import QUICK, QUICK_PROGRAM, families, on_slurm, settle


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def test_the_tiny_experiment_on_slurm_in_parts(tiny_run: Workflow, cluster: Cluster, tmp_path: Path, downloads: Path) -> None:
    workflow = copy_workflow(tmp_path / "workflow", downloads)
    settle(workflow.folder)
    (workflow.folder / "parts.yaml").write_text("scatter: {logit_caching: 3, synthetic_generation: 2, preference_dataset: 2}\n")
    on_slurm(workflow, overlay="parts.yaml")
    for pattern in ("teacher/*/*/manifest.json", "demo_*/final_*/manifest.json"):
        made = {p.relative_to(workflow.folder): p.read_bytes() for p in workflow.folder.glob(f"results/{pattern}")}
        local = {p.relative_to(tiny_run.folder): p.read_bytes() for p in tiny_run.folder.glob(f"results/{pattern}")}
        assert made == local, "bit for bit what a local run in one part gives"
    record = workflow.json("results/teacher/logit_cache-*/stages/logit_caching.json")
    assert [a["part"] for a in record["attempts"]].count(None) == 1 and record["parts"] == 3
    assert {a["part"] for a in record["attempts"]} == {"1-of-3", "2-of-3", "3-of-3", None}
    assert len({a["slurm"]["SLURM_JOB_ID"] for a in record["attempts"]}) == 4, "a Slurm job each"
    assert record["total_energy_joules"] == pytest.approx(sum(a["total_j"] or 0 for a in record["attempts"]))
    check_requests(cluster, workflow)
    assert "Nothing to be done" in on_slurm(workflow, "-n").stdout, "another number of parts reruns nothing"


def check_requests(cluster: Cluster, workflow: Workflow) -> None:
    """What Slurm was asked for, by the rule in each job's comment."""
    found: dict[str, set[tuple[str, str]]] = {}
    for line in cluster.run("scontrol", "--oneliner", "show", "job").splitlines():
        words = dict(word.partition("=")[::2] for word in line.split() if "=" in word)
        rule = words["Comment"].removeprefix("rule_").partition("_wildcards")[0]
        found.setdefault(rule, set()).add((words["Partition"], words.get("TresPerNode", "")))
    for rule in ("cache_logits", "generate_answers", "rank_pairs", "student_train", "dpo_training", "evaluation", "prerun"):
        assert found[rule] == {("gpu", "gres:gpu:l40s:1")}, found
    assert found["preprocess"] == {("cpu", "")} and found["merge_logits"] == {("batch", "")}, found


def test_the_plan_shows_the_resources(finished: Workflow) -> None:
    settle(finished.folder)
    shutil.rmtree(finished.folder / "results" / "demo_kd")
    plan = on_slurm(finished, "-n", "demo_kd").stdout
    (training,) = re.findall(r"rule student_train:.*?resources: (.*?)\n", plan, re.DOTALL)
    for resource in ("runtime=30", "slurm_partition=gpu", "gres=gpu:l40s:1", "mem_mb=1500"):
        assert resource in training
    assert re.search(r"rule student_train:[^\[]*threads: 2\n", plan), "CPUs, too"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("partition: gpu", "partition: gpux"),
            r"invalid partition.*--partition=gpux.*Correct in the profile's site block: partition",
        ),
        (("teacher: { partition: gpu", "teacher: { partition: cpu"), r"rule cache_logits.*--gres=gpu:l40s:1.*site block: gpus"),
        (("gpu_model: l40s", "gpu_model: a100"), r"--gres=gpu:a100:1.*site block: gpus, gpu_model"),
        (("mem_gb: 1.5", "mem_gb: 900"), r"--mem=900000.*site block: .*mem_gb"),
        (
            ("hours: 0.5", "hours: 1"),
            r"last attempt asks for 300 minutes, but partition gpu allows 180: lower hours or max_hours",
        ),
    ],
    ids=["partition", "GPU on CPU nodes", "GPU model", "memory", "hours of the last attempt"],
)
def test_what_the_site_refuses_is_said_before_the_first_job(
    finished: Workflow, cluster: Cluster, change: tuple[str, str], message: str
) -> None:
    settle(finished.folder, families().replace(*change))
    for folder in ("results/teacher", "results/demo_kd"):
        shutil.rmtree(finished.folder / folder)
    before = cluster.run("squeue", "--states=all", "--noheader", "--format=%i")
    result = on_slurm(finished, "demo_kd", check=False)
    assert result.returncode != 0 and re.search(message, result.stderr, re.DOTALL), result.stderr
    assert cluster.run("squeue", "--states=all", "--noheader", "--format=%i") == before, "nothing was submitted"


def test_no_sbatch_and_no_database_are_named(finished: Workflow, cluster: Cluster, tmp_path: Path) -> None:
    shutil.rmtree(finished.folder / "results" / "demo_kd")
    settle(finished.folder, accounting="true")
    result = on_slurm(finished, "demo_kd", check=False)
    assert "set `accounting: false` in the profile's site block" in result.stderr
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "which", "python3", "scontrol"):
        (tools / name).symlink_to(shutil.which(name) or name)
    settle(finished.folder, accounting="false")
    result = on_slurm(finished, "demo_kd", check=False, PATH=str(tools))
    assert "--executor slurm, but there is no sbatch on PATH: run this on a login node" in result.stderr


def test_a_results_folder_that_cannot_be_written_is_named(finished: Workflow) -> None:
    (finished.folder / "nowhere.yaml").write_text("output: {root: /proc/results}\n")
    result = finished.snakemake("--cores", "1", "demo_kd", overlay="nowhere.yaml", check=False)
    assert "output: /proc/results cannot be written to" in result.stderr


def test_more_parts_than_units_are_refused_while_planning(finished: Workflow) -> None:
    (finished.folder / "many.yaml").write_text("scatter: {logit_caching: 4}\n")
    result = finished.snakemake("-n", overlay="many.yaml", check=False)
    assert "scatter.logit_caching = 4, but the work has 3 unit(s) at most" in result.stdout + result.stderr


def test_two_nodes_train_as_one_and_this_machine_is_counted_once(
    tiny_run: Workflow, finished: Workflow, cluster: Cluster
) -> None:
    settle(finished.folder, families().replace("student: { partition: gpu", "student: { partition: pair"))
    (finished.folder / "two.yaml").write_text(yaml.safe_dump({"training": {"num_nodes": 2}}))
    on_slurm(finished, "--retries", "0", "results/demo_kd/final_model/manifest.json", overlay="two.yaml")
    one, two = (w.json("results/demo_kd/stages/student_train.json") for w in (tiny_run, finished))
    assert two["metrics"]["cross_entropy"] == pytest.approx(one["metrics"]["cross_entropy"], abs=1e-4)
    assert two["attempts"][-1]["hosts"] == [os.uname().nodename], "both nodes are this machine"
    (job,) = {a["slurm"]["SLURM_JOB_ID"] for a in two["attempts"]}
    asked = cluster.run("scontrol", "--oneliner", "show", "job", job)
    assert "NumNodes=2" in asked and "TresPerNode=gres:gpu:l40s:1" in asked


@needs_modules
def test_plain_executor_slurm_submits_at_once_with_the_modules_of_the_site(
    finished: Workflow, modules: dict[str, str], cluster: Cluster
) -> None:
    """profiles/default has one meter for this machine, which must not hold jobs of a cluster back."""
    targets = [f"results/{name}/experiment_summary.json" for name in ("demo_kd", "demo_sft")]
    for target in targets:
        (finished.folder / target).unlink()
    options = (*QUICK, "--slurm-status-command", "squeue", *WITH_MODULES)
    output = finished.snakemake("--executor", "slurm", *targets, *options, program=QUICK_PROGRAM, **modules).stderr
    assert "Execute 2 jobs..." in output
    newest = max(cluster.run("squeue", "--states=all", "--noheader", "--format=%i").split(), key=int)
    assert "MinMemoryCPU=500M" in cluster.run("scontrol", "--oneliner", "show", "job", newest), "the site's default"
    stages = [line for line in (finished.folder / "seen").read_text().splitlines() if "energy.meter" not in line]
    assert len(stages) == 2
    assert all(line.startswith("python-for-tests/1.0 -m workflow_scripts.accounting.summary") for line in stages), stages
    for name in ("demo_kd", "demo_sft"):
        (attempt,) = finished.json(f"results/{name}/stages/experiment_summary.json")["attempts"][-1:]
        assert "SLURM_JOB_ID" in attempt["slurm"]
