# The plan and the paths; no rule stands here. rules/metered.smk makes the rules that the other files add to RULES.

import os
import sys
from pathlib import Path

sys.path.insert(0, workflow.basedir)

from workflow_scripts.cluster.before import (
    check_before_the_first_job,
    help_after_failure,
)
from workflow_scripts.cluster.site import read_modules
from workflow_scripts.cluster.slurm_plugin import mend
from workflow_scripts.pipelines import (
    PIPELINES,
    STAGES,
    TEACHER_STAGES,
    TRAININGS,
    exports,
    splits,
)
from workflow_scripts.plan.code import stage_environment
from workflow_scripts.plan.metered import Metered
from workflow_scripts.plan.slices import canonical
from workflow_scripts.plan.snakemake_internals import adapt, read_plan, remember

os.environ.update(stage_environment(workflow.basedir))
adapt(workflow)
mend()

PLAN = read_plan(workflow, config)
RULES = []
ROOT = PLAN.output.root
OUTPUT_DIR = PLAN.output.experiment_dir()
RUN_DIR = PLAN.output.record_dir()
DOWNLOADS = PLAN.output.downloads()
PRERUN_DIR = f"{ROOT}/prerun/{PLAN.host_kind}"
PRERUN = f"{PRERUN_DIR}/validation.json"
SUMMARY = f"{RUN_DIR}/experiment_summary.json"
COMPARISON = f"{ROOT}/comparison/comparison.json"
MODEL_DIR = f"{ROOT}/models/{{model}}"
MODULES = read_modules(Path(workflow.basedir, "envs", "modules.txt"))


def meters(wildcards):
    """Resource function: two metered stages never share this machine, but jobs of a cluster have nodes of their own.

    Called for each job: while the rules are read, the executor is not known yet.
    """
    return 0 if workflow.non_local_exec else 1


def target(name):
    """Input function of the target of an experiment, for all of its runs. Where the command line does not fit it, it raises the reason."""

    def input(wildcards):
        if reason := PLAN.refusal(name):
            raise WorkflowError(reason)
        return [
            p
            for r in PLAN.targets[name]
            for p in (SUMMARY.format(experiment=r), *PLAN.finals(r))
        ]

    return input
