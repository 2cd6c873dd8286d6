"""Distillation Energy Benchmark: which way of distilling costs how many joules for what quality.

snakemake -n                       the plan
snakemake                          all experiments of `comparison.experiments`, compared
snakemake <experiment>             one experiment, by the name of its file in config/experiments
snakemake logit_caching            the teacher stages alone (also synthetic_generation, preference_dataset)
snakemake --report report.html     the report, after a run
snakemake --workflow-profile profiles/slurm <targets>      on a cluster
"""

from snakemake.utils import min_version

min_version("9.27.1")


configfile: "config/base.yaml"


include: "rules/common.smk"
include: "rules/inputs.smk"
include: "rules/teacher.smk"
include: "rules/student.smk"
include: "rules/answer.smk"


wildcard_constraints:
    experiment="[A-Za-z0-9_-]+",
    artefact="[A-Za-z0-9._-]+",
    model="[A-Za-z0-9._-]+",
    part=r"\d+-of-\d+",
    teacher="[A-Za-z0-9._-]+",


onstart:
    check_before_the_first_job(workflow)


onerror:
    help_after_failure(workflow)


localrules:
    all,
    logit_caching,
    synthetic_generation,
    preference_dataset,


rule all:
    default_target: True
    input:
        COMPARISON,
        [PLAN.finals(name) for name in PLAN.comparison.experiments],


rule logit_caching:
    input:
        PLAN.teacher_targets("logit_caching"),


rule synthetic_generation:
    input:
        PLAN.teacher_targets("synthetic_generation"),


rule preference_dataset:
    input:
        PLAN.teacher_targets("preference_dataset"),


for name in [*PLAN.experiments, *PLAN.set_aside]:

    rule:
        name:
            name
        input:
            target(name),
        localrule: True
