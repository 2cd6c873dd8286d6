# What every experiment starts from.
#   prerun          -> <root>/prerun/<host kind>/validation.json
#   prepare_model   -> <root>/models/<model>/model/           a Hugging Face folder, or a pointer to one
#   preprocess      -> <root>/corpus/<artefact>/dataset/      tokenised train and evaluation split
#   check_tokenizers -> <root>/models/<student>/checks/<teacher>.json, before the expensive stages
# Each with stages/<stage>.json (the record) and codecarbon/ beside it.


# Only a missing result makes prerun run: its parameters are untracked and its code is no input, because Snakemake looks
# at nothing below a job that must run when the link is `ancient`. A result made with other settings is refused by the meter.
rule prerun:
    output:
        validation=PRERUN,
        record=f"{PRERUN_DIR}/stages/prerun.json",
    log:
        f"{PRERUN_DIR}/logs/prerun.log",
    conda:
        "../envs/conda.yaml"
    envmodules:
        *MODULES,
    threads: STAGE_THREADS
    resources:
        meter=meters,
    params:
        meter=meter("prerun", "prerun", PRERUN_DIR),
        settings=untracked(lambda wildcards: PLAN.prerun.settings),
        options=untracked(lambda wildcards: PLAN.energy),
    shell:
        "{params.meter:q} --record {output.record:q} --log {log:q} --"
        " python -m workflow_scripts.stages.prerun --settings {params.settings:q}"
        " --options {params.options:q} --out {output.validation:q}"


rule prepare_model:
    input:
        upstream=lambda wildcards: list(PLAN.models[wildcards.model].inputs.values()),
        files=lambda wildcards: PLAN.models[wildcards.model].files,
        code=code("stages.prepare_model"),
        prerun=ancient(PRERUN),
    output:
        manifest=f"{ROOT}/models/{{model}}/model/manifest.json",
        record=f"{ROOT}/models/{{model}}/stages/prepare_model.json",
    log:
        f"{ROOT}/models/{{model}}/logs/prepare_model.log",
    conda:
        "../envs/conda.yaml"
    envmodules:
        *MODULES,
    threads: STAGE_THREADS
    resources:
        meter=meters,
    params:
        meter=meter("prepare_model", "data", f"{ROOT}/models/{{model}}"),
        command=lambda wildcards: command(PLAN.models[wildcards.model]),
        downloads=untracked(lambda wildcards: DOWNLOADS),
    shell:
        "{params.meter:q} --idle {input.prerun:q} --record {output.record:q} --log {log:q}"
        " --input {input.upstream:q} {input.files:q} {input.code:q} --"
        " python -m workflow_scripts.stages.prepare_model {params.command:q}"
        " --download_dir {params.downloads:q} --out {output.manifest:q}"


rule check_tokenizers:
    input:
        teacher=f"{ROOT}/models/{{teacher}}/model/manifest.json",
        student=f"{ROOT}/models/{{model}}/model/manifest.json",
        code=code("stages.check_tokenizers"),
        prerun=ancient(PRERUN),
    output:
        proof=f"{ROOT}/models/{{model}}/checks/{{teacher}}.json",
        record=f"{ROOT}/models/{{model}}/checks/{{teacher}}.record.json",
    log:
        f"{ROOT}/models/{{model}}/logs/check_tokenizers.{{teacher}}.log",
    priority: 100
    conda:
        "../envs/conda.yaml"
    envmodules:
        *MODULES,
    resources:
        meter=meters,
    params:
        meter=meter("check_tokenizers", "accounting", f"{ROOT}/models/{{model}}/checks"),
    shell:
        "{params.meter:q} --idle {input.prerun:q} --record {output.record:q} --log {log:q}"
        " --input {input.teacher:q} {input.student:q} {input.code:q} --"
        " python -m workflow_scripts.stages.check_tokenizers --settings '{{}}'"
        " --teacher {input.teacher:q} --student {input.student:q} --out {output.proof:q}"


rule preprocess:
    input:
        upstream=lambda wildcards: list(
            PLAN.corpora[wildcards.artefact].inputs.values()
        ),
        files=lambda wildcards: PLAN.corpora[wildcards.artefact].files,
        code=code("stages.preprocess"),
        prerun=ancient(PRERUN),
    output:
        manifest=f"{ROOT}/corpus/{{artefact}}/dataset/manifest.json",
        record=f"{ROOT}/corpus/{{artefact}}/stages/preprocess.json",
    log:
        f"{ROOT}/corpus/{{artefact}}/logs/preprocess.log",
    conda:
        "../envs/conda.yaml"
    envmodules:
        *MODULES,
    threads: STAGE_THREADS
    resources:
        meter=meters,
    params:
        meter=meter("preprocess", "data", f"{ROOT}/corpus/{{artefact}}"),
        command=lambda wildcards: command(PLAN.corpora[wildcards.artefact]),
        downloads=untracked(lambda wildcards: DOWNLOADS),
    shell:
        "{params.meter:q} --idle {input.prerun:q} --record {output.record:q} --log {log:q}"
        " --input {input.upstream:q} {input.files:q} {input.code:q} --"
        " python -m workflow_scripts.stages.preprocess {params.command:q}"
        " --download_dir {params.downloads:q} --out {output.manifest:q}"
