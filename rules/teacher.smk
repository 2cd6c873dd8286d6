# The teacher's output, made once and shared by all experiments whose settings agree.
#   cache_logits      -> <root>/teacher/<artefact>/logit_cache/          stage logit_caching
#   generate_answers  -> <root>/teacher/<artefact>/synthetic_dataset/    stage synthetic_generation
#   rank_pairs        -> <root>/teacher/<artefact>/preference_dataset/   stage preference_dataset
# Each with stages/<stage>.json (the record) and codecarbon/ beside it.


rule cache_logits:
    input:
        upstream=lambda wildcards: list(
            PLAN.teacher["logit_caching"][wildcards.artefact].inputs.values()
        ),
        code=code("stages.logit_caching"),
        prerun=ancient(PRERUN),
    output:
        manifest=f"{ROOT}/teacher/{{artefact}}/logit_cache/manifest.json",
        record=f"{ROOT}/teacher/{{artefact}}/stages/logit_caching.json",
    log:
        f"{ROOT}/teacher/{{artefact}}/logs/logit_caching.log",
    conda:
        "../envs/conda.yaml"
    threads: STAGE_THREADS
    resources:
        meter=1,
    params:
        meter=meter("logit_caching", "teacher", f"{ROOT}/teacher/{{artefact}}"),
        command=lambda wildcards: command(
            PLAN.teacher["logit_caching"][wildcards.artefact]
        ),
    shell:
        "{params.meter:q} --idle {input.prerun:q} --record {output.record:q} --log {log:q}"
        " --input {input.upstream:q} {input.code:q} --"
        " python -m workflow_scripts.stages.logit_caching {params.command:q} --out {output.manifest:q}"


rule generate_answers:
    input:
        upstream=lambda wildcards: list(
            PLAN.teacher["synthetic_generation"][wildcards.artefact].inputs.values()
        ),
        code=code("stages.synthetic_generation"),
        prerun=ancient(PRERUN),
    output:
        manifest=f"{ROOT}/teacher/{{artefact}}/synthetic_dataset/manifest.json",
        record=f"{ROOT}/teacher/{{artefact}}/stages/synthetic_generation.json",
    log:
        f"{ROOT}/teacher/{{artefact}}/logs/synthetic_generation.log",
    conda:
        "../envs/conda.yaml"
    threads: STAGE_THREADS
    resources:
        meter=1,
    params:
        meter=meter("synthetic_generation", "teacher", f"{ROOT}/teacher/{{artefact}}"),
        command=lambda wildcards: command(
            PLAN.teacher["synthetic_generation"][wildcards.artefact]
        ),
    shell:
        "{params.meter:q} --idle {input.prerun:q} --record {output.record:q} --log {log:q}"
        " --input {input.upstream:q} {input.code:q} --"
        " python -m workflow_scripts.stages.synthetic_generation {params.command:q} --out {output.manifest:q}"


rule rank_pairs:
    input:
        upstream=lambda wildcards: list(
            PLAN.teacher["preference_dataset"][wildcards.artefact].inputs.values()
        ),
        code=code("stages.preference_dataset"),
        prerun=ancient(PRERUN),
    output:
        manifest=f"{ROOT}/teacher/{{artefact}}/preference_dataset/manifest.json",
        record=f"{ROOT}/teacher/{{artefact}}/stages/preference_dataset.json",
    log:
        f"{ROOT}/teacher/{{artefact}}/logs/preference_dataset.log",
    conda:
        "../envs/conda.yaml"
    threads: STAGE_THREADS
    resources:
        meter=1,
    params:
        meter=meter("preference_dataset", "teacher", f"{ROOT}/teacher/{{artefact}}"),
        command=lambda wildcards: command(
            PLAN.teacher["preference_dataset"][wildcards.artefact]
        ),
    shell:
        "{params.meter:q} --idle {input.prerun:q} --record {output.record:q} --log {log:q}"
        " --input {input.upstream:q} {input.code:q} --"
        " python -m workflow_scripts.stages.preference_dataset {params.command:q} --out {output.manifest:q}"
