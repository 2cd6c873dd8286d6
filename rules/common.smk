# Helpers of the rules: the plan, paths, the meter's command line. No rule stands here.
#
# A parameter that makes a stage stale is the stage's slice as canonical JSON. Parameters from `untracked` depend on
# `threads`, which Snakemake by design leaves out when it compares parameters: they change no result.

import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, workflow.basedir)

from snakemake.settings.types import DeploymentMethod

from workflow_scripts.cluster.site import (
    SiteError,
    announce,
    check_modules,
    check_packages,
    check_sharding,
    check_site,
    check_writable,
    gpus_asked,
    hint_after_failure,
    read_modules,
)
from workflow_scripts.plan.code import sources, stage_environment
from workflow_scripts.plan.plan import TEACHER_FOLDER, Plan
from workflow_scripts.settings import SettingsError, load_experiments

os.environ.update(stage_environment(workflow.basedir))

try:
    PLAN = Plan(
        load_experiments(
            Path(workflow.basedir, "config"),
            config,
            workflow.config_settings.overwrite_config,
        )
    )
except SettingsError as error:
    raise WorkflowError(str(error)) from None

ROOT = PLAN.output.root
OUTPUT_DIR = PLAN.output.experiment_dir()
RUN_DIR = PLAN.output.record_dir()
DOWNLOADS = PLAN.output.downloads()
PRERUN_DIR = f"{ROOT}/prerun/{PLAN.host_kind}"
PRERUN = f"{PRERUN_DIR}/validation.json"
SUMMARY = f"{RUN_DIR}/experiment_summary.json"
COMPARISON = f"{ROOT}/comparison/comparison.json"
TEACHER_DIR = f"{ROOT}/teacher/{{artefact}}"
TEACHER_RULES = {
    "logit_caching": ("cache_logits", "merge_logits"),
    "synthetic_generation": ("generate_answers", "merge_answers"),
    "preference_dataset": ("rank_pairs", "merge_pairs"),
}
EXPORTS = {"final_model": "export_model", "final_policy": "export_policy"}
STAGE_THREADS = 16
MODULES = read_modules(Path(workflow.basedir, "envs", "modules.txt"))


def meters(wildcards):
    """Resource function: two metered stages never share this machine (profiles/default has one `meter`), but jobs of a
    cluster have nodes of their own. Called for each job: while the rules are read, the executor is not known yet.
    """
    return 0 if workflow.non_local_exec else 1


def check_before_the_first_job(workflow):
    """Stop, naming the setting, where results cannot be written or the cluster would refuse the planned jobs."""
    try:
        check_writable(PLAN.output.folders())
        if (
            DeploymentMethod.ENV_MODULES
            in workflow.deployment_settings.deployment_method
        ):
            check_modules(MODULES)
        trainings = {
            job.wildcards.experiment: gpus_asked(job.resources)
            for job in workflow.dag.needrun_jobs()
            if job.rule.name in ("student_train", "dpo_training")
        }
        check_sharding(
            {name: gpus for name, gpus in trainings.items() if PLAN.sharded(name)},
            here=workflow.local_exec,
        )
        check_tasks(workflow)
        if not workflow.deployment_settings.deployment_method:
            # the rules run in this environment
            check_packages(
                PLAN.experiments[name].settings.training.optimizer for name in trainings
            )
        if workflow.executor_plugin.name == "slurm":
            jobs = [job for job in workflow.dag.needrun_jobs() if not job.is_local]
            settings = workflow.executor_settings
            options = [
                f"--{name}={value}"
                for name in ("qos", "reservation")
                if (value := getattr(settings, name))
            ]
            check_site(
                {job.rule.name: last_request(job) for job in jobs},
                settings.status_command,
                options,
            )
            announce(ROOT)
    except SiteError as error:
        raise WorkflowError(str(error)) from None


def last_request(job):
    """Resources of a job's last attempt, which asks for the most."""
    first, job.attempt = job.attempt, job.restart_times + 1
    resources = dict(job.resources.items())
    job.attempt = first
    return resources


def check_tasks(workflow):
    """Stop where the planned evaluations ask for tasks that cannot be run, unless jobs have an environment of their own."""
    if workflow.deployment_settings.deployment_method:
        return
    jobs = workflow.dag.needrun_jobs()
    asked = {
        job.params.command[1] for job in jobs if job.rule.name.endswith("evaluation")
    }
    for settings in asked:
        if json.loads(settings)["evaluation"]["lm_eval_tasks"]:
            check = [sys.executable, "-m", "workflow_scripts.stages.runtime.check_tasks"]
            done = subprocess.run(
                [*check, "--settings", settings], capture_output=True, text=True
            )
            if done.returncode:
                raise WorkflowError(done.stderr.strip().splitlines()[-1])


def help_after_failure(workflow):
    """On a cluster, say where to look when the jobs left nothing to look at."""
    if workflow.executor_plugin.name == "slurm":
        logs = workflow.executor_settings.logdir or Path(".snakemake", "slurm_logs")
        if hint := hint_after_failure(Path(logs)):
            print(hint, file=sys.stderr)


def target(name):
    """Input function of an experiment's target. Where the command line does not fit the experiment, it raises the reason."""

    def input(wildcards):
        if name in PLAN.set_aside:
            raise WorkflowError(PLAN.set_aside[name])
        return [SUMMARY.format(experiment=name), *PLAN.finals(name)]

    return input


def code(module):
    """Source files that decide the result of a stage module, relative to the working directory."""
    return [os.path.relpath(path) for path in sources(f"workflow_scripts.{module}")]


def command(job):
    """Arguments of a stage: its settings and its inputs by name."""
    inputs = [part for name, path in job.inputs.items() for part in (f"--{name}", path)]
    return ["--settings", job.settings, *inputs]


def untracked(function):
    """A parameter function whose value changes no result, so that no job is rerun because of it."""
    return lambda wildcards, threads: function(wildcards)


def teacher_upstream(stage):
    """Input function: manifests that a teacher stage reads."""
    return lambda wildcards: list(
        PLAN.teacher[stage][wildcards.artefact].inputs.values()
    )


def teacher_command(stage):
    """Parameter function: settings and inputs of a teacher stage."""
    return lambda wildcards: command(PLAN.teacher[stage][wildcards.artefact])


def teacher_parts(stage):
    """Input function: manifests of the parts to merge."""
    return lambda wildcards: PLAN.parts(stage, wildcards.artefact)


def untracked_count(stage):
    """Parameter function: into how many parts the work was split."""
    return untracked(lambda wildcards: len(PLAN.parts(stage, wildcards.artefact)))


def meter(stage, role, folder):
    """Parameter: the meter's command line up to its inputs and outputs. `folder` takes the rule's wildcards."""

    def prefix(wildcards):
        name = getattr(wildcards, "experiment", None)
        experiment = (
            [f"--experiment={name}", f"--pipeline={PLAN.pipeline(name)}"]
            if name
            else []
        )
        return [
            *("python", "-m", "workflow_scripts.energy.meter"),
            *(f"--stage={stage}", f"--role={role}", *experiment),
            *(f"--options={PLAN.energy}", f"--state={ROOT}/state"),
            *(
                []
                if stage == "prerun"
                else [f"--prerun-settings={PLAN.prerun.settings}"]
            ),
            f"--codecarbon={folder.format(**wildcards)}/codecarbon",
        ]

    return untracked(prefix)
