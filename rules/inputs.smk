# What every experiment starts from.
#   prerun          -> <root>/prerun/<host kind>/validation.json
#   prepare_model   -> <root>/models/<model>/model/           a Hugging Face folder, or a pointer to one
#   preprocess      -> <root>/corpus/<artefact>/dataset/      tokenised train and evaluation split
# Each with stages/<stage>.json (the record) and codecarbon/ beside it.


rule prerun:
    input:
        code=code("energy.prerun"),
    output:
        validation=PRERUN,
        record=f"{PRERUN_DIR}/stages/prerun.json",
    log:
        f"{PRERUN_DIR}/logs/prerun.log",
    conda:
        "../envs/conda.yaml"
    threads: STAGE_THREADS
    resources:
        meter=1,
    params:
        meter=meter("prerun", "prerun", PRERUN_DIR),
        settings=PLAN.prerun.settings,
        options=untracked(lambda wildcards: PLAN.energy),
    shell:
        "{params.meter:q} --record {output.record:q} --log {log:q}"
        " --input {input.code:q} --"
        " python -m workflow_scripts.energy.prerun --settings {params.settings:q}"
        " --options {params.options:q} --out {output.validation:q}"


rule prepare_model:
    input:
        upstream=lambda wildcards: list(PLAN.models[wildcards.model].inputs.values()),
        code=code("stages.prepare_model"),
        prerun=ancient(PRERUN),
    output:
        manifest=f"{ROOT}/models/{{model}}/model/manifest.json",
        record=f"{ROOT}/models/{{model}}/stages/prepare_model.json",
    log:
        f"{ROOT}/models/{{model}}/logs/prepare_model.log",
    conda:
        "../envs/conda.yaml"
    threads: STAGE_THREADS
    resources:
        meter=1,
    params:
        meter=meter("prepare_model", "data", f"{ROOT}/models/{{model}}"),
        command=lambda wildcards: command(PLAN.models[wildcards.model]),
        downloads=untracked(lambda wildcards: DOWNLOADS),
    shell:
        "{params.meter:q} --record {output.record:q} --log {log:q}"
        " --input {input.upstream:q} {input.code:q} --"
        " python -m workflow_scripts.stages.prepare_model {params.command:q}"
        " --download_dir {params.downloads:q} --out {output.manifest:q}"


rule preprocess:
    input:
        upstream=lambda wildcards: list(
            PLAN.corpora[wildcards.artefact].inputs.values()
        ),
        code=code("stages.preprocess"),
        prerun=ancient(PRERUN),
    output:
        manifest=f"{ROOT}/corpus/{{artefact}}/dataset/manifest.json",
        record=f"{ROOT}/corpus/{{artefact}}/stages/preprocess.json",
    log:
        f"{ROOT}/corpus/{{artefact}}/logs/preprocess.log",
    conda:
        "../envs/conda.yaml"
    threads: STAGE_THREADS
    resources:
        meter=1,
    params:
        meter=meter("preprocess", "data", f"{ROOT}/corpus/{{artefact}}"),
        command=lambda wildcards: command(PLAN.corpora[wildcards.artefact]),
        downloads=untracked(lambda wildcards: DOWNLOADS),
    shell:
        "{params.meter:q} --record {output.record:q} --log {log:q}"
        " --input {input.upstream:q} {input.code:q} --"
        " python -m workflow_scripts.stages.preprocess {params.command:q}"
        " --download_dir {params.downloads:q} --out {output.manifest:q}"
