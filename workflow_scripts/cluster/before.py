"""What stops a run before its first job, what warms the machine up for it, and where to look after its last."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

from workflow_scripts.cluster import site
from workflow_scripts.pipelines import TRAININGS, splits
from workflow_scripts.plan.plan import Plan
from workflow_scripts.plan.slices import canonical
from workflow_scripts.plan.snakemake_internals import last_request, planned_jobs

WARM_UP = """
import time, torch
places = [f"cuda:{n}" for n in range(torch.cuda.device_count())] or ["cpu"]
squares = [torch.rand(2048, 2048, device=place) for place in places]
end = time.monotonic() + %f
while time.monotonic() < end:
    for square in squares:
        (square @ square).sum().item()
"""


def check_before_the_first_job(workflow: Any, plan: Plan, modules: Sequence[str]) -> None:
    """Stop, naming the setting, where results cannot be written or the cluster would refuse the planned jobs."""
    jobs, methods = planned_jobs(workflow), workflow.deployment_settings.deployment_method
    trainings = {job.wildcards.experiment: site.gpus_asked(job.resources) for job in jobs if job.rule.name in TRAININGS}
    try:
        site.check_writable(plan.output.folders())
        if DeploymentMethod.ENV_MODULES in methods:
            site.check_modules(modules)
        site.check_sharding({name: gpus for name, gpus in trainings.items() if plan.sharded(name)}, here=workflow.local_exec)
        if not methods:  # the rules run in this environment
            check_tasks(jobs, plan)
            site.check_packages((plan.experiments[n].settings.training.optimizer for n in trainings), backends(jobs, plan))
        if workflow.executor_plugin.name == "slurm":
            settings = workflow.executor_settings
            options = [f"--{name}={value}" for name in ("qos", "reservation") if (value := getattr(settings, name))]
            submitted = [job for job in jobs if not job.is_local]
            requests = {job.rule.name: last_request(job) for job in submitted}
            site.check_site(requests, settings.status_command, options)
            site.check_submissions(requests, min(len(submitted), workflow.resource_settings.nodes or 1), options)
            site.announce(plan.output.root)
    except site.SiteError as error:
        raise WorkflowError(str(error)) from None
    if workflow.local_exec and not methods and begins_cold({job.rule.name for job in jobs}):
        subprocess.run([sys.executable, "-c", WARM_UP % plan.prerun.settings["prerun"]["burn_in_seconds"]], check=False)


def backends(jobs: Sequence[Any], plan: Plan) -> set[tuple[str, str]]:
    """The generation backends of the planned teacher stages and rollouts, each with its key."""
    stages = {split.part_rule: stage.name for stage, split in splits()}
    asked = {(stages[job.rule.name], job.wildcards.artefact) for job in jobs if job.rule.name in stages}
    planned = (a.parts.settings for stage in stages.values() for a in plan.teacher[stage].values() if (stage, a.raw) in asked)
    sections = (item for settings in planned for item in settings.items())
    return {
        (f"{n}.generation.backend", s["generation"]["backend"])
        for n, s in sections
        if isinstance(s, dict) and "generation" in s
    }


def begins_cold(rules: AbstractSet[str]) -> bool:
    """Whether the first work that is compared would begin on a machine that has rested; a prerun loads it before.

    Then the machine computes for as long as in a prerun, on no bill, so that the first run has no other start than the next.
    """
    compared = {*TRAININGS, "train_round", "evaluation", *(split.part_rule for _, split in splits())}
    return "prerun" not in rules and not compared.isdisjoint(rules)


def check_tasks(jobs: Sequence[Any], plan: Plan) -> None:
    """Stop where the planned evaluations ask for tasks that cannot be run."""
    planned = [plan.experiments[job.wildcards.experiment].evaluation for job in jobs if job.rule.name == "evaluation"]
    planned += [plan.references[job.wildcards.artefact] for job in jobs if job.rule.name == "reference_evaluation"]
    for settings in {canonical(job.settings) for job in planned if job.settings["evaluation"]["lm_eval_tasks"]}:
        check = [sys.executable, "-m", "workflow_scripts.stages.runtime.check_tasks", "--settings", settings]
        done = subprocess.run(check, capture_output=True, text=True, check=False)
        if done.returncode:
            raise WorkflowError(done.stderr.strip().splitlines()[-1])


def help_after_failure(workflow: Any) -> None:
    """On a cluster, say where to look when the jobs left nothing to look at."""
    if workflow.executor_plugin.name == "slurm":
        logs = workflow.executor_settings.logdir or Path(".snakemake", "slurm_logs")
        if hint := site.hint_after_failure(Path(logs)):
            print(hint, file=sys.stderr)
