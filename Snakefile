"""Distillation Energy Benchmark: which way of distilling costs how many joules for what quality.

snakemake -n                       the plan
snakemake                          all experiments of `comparison.experiments`, compared
snakemake <experiment>             one experiment, by the name of its file in config/experiments: all of its runs
snakemake <experiment>-seed0       one run of several (experiment.seeds)
snakemake logit_caching            the teacher stages alone (also synthetic_generation, preference_dataset)
snakemake --report report.html     the report, after a run
snakemake --workflow-profile profiles/slurm <targets>      on a cluster
"""

from pathlib import Path

from snakemake.utils import min_version

min_version("9.27.1")

# Of the folder that Snakemake runs in where there is one, else the workflow's own.
BASE = Path("config", "base.yaml")
if not BASE.is_file():
    BASE = Path(workflow.basedir, BASE)


configfile: BASE


include: "rules/common.smk"
include: "rules/inputs.smk"
include: "rules/teacher.smk"
include: "rules/student.smk"
include: "rules/answer.smk"
include: "rules/metered.smk"


wildcard_constraints:
    experiment="[A-Za-z0-9_-]+",
    artefact="[A-Za-z0-9._-]+",
    model="[A-Za-z0-9._-]+",
    part=r"\d+-of-\d+",
    teacher="[A-Za-z0-9._-]+",


onstart:
    check_before_the_first_job(workflow, PLAN, MODULES)


onerror:
    help_after_failure(workflow)


localrules:
    all,


rule all:
    default_target: True
    input:
        COMPARISON,
        [PLAN.finals(name) for name in PLAN.comparison.experiments],


for stage in TEACHER_STAGES:

    rule:
        name:
            stage
        input:
            PLAN.teacher_targets(stage),
        localrule: True


for name in PLAN.targets:

    rule:
        name:
            name
        input:
            target(name),
        localrule: True
