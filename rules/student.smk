# Trainings and evaluations.
#   student_train          -> <output_dir>/final_model/     kd, sft, baseline
#   dpo_training           -> <output_dir>/final_policy/    dpo
#   evaluation             -> <output_dir>/evaluation.json
#   reference_evaluation   -> <root>/reference/<artefact>/evaluation.json    untrained student, teacher
# Records in <run_dir>/stages/, CodeCarbon rows in <run_dir>/codecarbon/.


rule student_train:
    input:
        upstream=lambda wildcards: list(
            PLAN.experiments[wildcards.experiment].training.inputs.values()
        ),
        code=code("stages.student_train"),
        check=lambda wildcards: PLAN.experiments[wildcards.experiment].check,
        prerun=ancient(PRERUN),
    output:
        manifest=f"{OUTPUT_DIR}/final_model/manifest.json",
        record=f"{RUN_DIR}/stages/student_train.json",
    log:
        f"{RUN_DIR}/logs/student_train.log",
    conda:
        "../envs/conda.yaml"
    envmodules:
        *MODULES,
    threads: STAGE_THREADS
    resources:
        meter=meters,
        nodes=lambda wildcards: PLAN.nodes(wildcards.experiment),
        processes=lambda wildcards: PLAN.processes(wildcards.experiment),
    params:
        meter=meter("student_train", "student", f"{RUN_DIR}"),
        command=lambda wildcards: command(
            PLAN.experiments[wildcards.experiment].training
        ),
        launcher=untracked(lambda wildcards: PLAN.launcher(wildcards.experiment)),
        wandb=untracked(lambda wildcards: PLAN.wandb(wildcards.experiment)),
    shell:
        "{params.meter:q} --idle {input.prerun:q} --record {output.record:q} --log {log:q}"
        " --input {input.upstream:q} {input.code:q} --"
        " {params.launcher:q} -m workflow_scripts.stages.student_train {params.command:q} --name {wildcards.experiment:q} --wandb {params.wandb:q} --out {output.manifest:q}"


rule dpo_training:
    input:
        upstream=lambda wildcards: list(
            PLAN.experiments[wildcards.experiment].training.inputs.values()
        ),
        code=code("stages.dpo_training"),
        check=lambda wildcards: PLAN.experiments[wildcards.experiment].check,
        prerun=ancient(PRERUN),
    output:
        manifest=f"{OUTPUT_DIR}/final_policy/manifest.json",
        record=f"{RUN_DIR}/stages/dpo_training.json",
    log:
        f"{RUN_DIR}/logs/dpo_training.log",
    conda:
        "../envs/conda.yaml"
    envmodules:
        *MODULES,
    threads: STAGE_THREADS
    resources:
        meter=meters,
        nodes=lambda wildcards: PLAN.nodes(wildcards.experiment),
        processes=lambda wildcards: PLAN.processes(wildcards.experiment),
    params:
        meter=meter("dpo_training", "student", f"{RUN_DIR}"),
        command=lambda wildcards: command(
            PLAN.experiments[wildcards.experiment].training
        ),
        launcher=untracked(lambda wildcards: PLAN.launcher(wildcards.experiment)),
        wandb=untracked(lambda wildcards: PLAN.wandb(wildcards.experiment)),
    shell:
        "{params.meter:q} --idle {input.prerun:q} --record {output.record:q} --log {log:q}"
        " --input {input.upstream:q} {input.code:q} --"
        " {params.launcher:q} -m workflow_scripts.stages.dpo_training {params.command:q} --name {wildcards.experiment:q} --wandb {params.wandb:q} --out {output.manifest:q}"


rule evaluation:
    input:
        upstream=lambda wildcards: list(
            PLAN.experiments[wildcards.experiment].evaluation.inputs.values()
        ),
        files=lambda wildcards: PLAN.experiments[wildcards.experiment].evaluation.files,
        code=code("stages.evaluation"),
        prerun=ancient(PRERUN),
    output:
        result=f"{OUTPUT_DIR}/evaluation.json",
        record=f"{RUN_DIR}/stages/evaluation.json",
    log:
        f"{RUN_DIR}/logs/evaluation.log",
    conda:
        "../envs/conda.yaml"
    envmodules:
        *MODULES,
    threads: STAGE_THREADS
    resources:
        meter=meters,
    params:
        meter=meter("evaluation", "evaluation", f"{RUN_DIR}"),
        command=lambda wildcards: command(
            PLAN.experiments[wildcards.experiment].evaluation
        ),
    shell:
        "{params.meter:q} --idle {input.prerun:q} --record {output.record:q} --log {log:q}"
        " --input {input.upstream:q} {input.files:q} {input.code:q} --"
        " python -m workflow_scripts.stages.evaluation {params.command:q} --out {output.result:q}"


rule reference_evaluation:
    input:
        upstream=lambda wildcards: list(
            PLAN.references[wildcards.artefact].inputs.values()
        ),
        files=lambda wildcards: PLAN.references[wildcards.artefact].files,
        code=code("stages.evaluation"),
        prerun=ancient(PRERUN),
    output:
        result=f"{ROOT}/reference/{{artefact}}/evaluation.json",
        record=f"{ROOT}/reference/{{artefact}}/stages/evaluation.json",
    log:
        f"{ROOT}/reference/{{artefact}}/logs/evaluation.log",
    conda:
        "../envs/conda.yaml"
    envmodules:
        *MODULES,
    threads: STAGE_THREADS
    resources:
        meter=meters,
    params:
        meter=meter("evaluation", "evaluation", f"{ROOT}/reference/{{artefact}}"),
        command=lambda wildcards: command(PLAN.references[wildcards.artefact]),
    shell:
        "{params.meter:q} --idle {input.prerun:q} --record {output.record:q} --log {log:q}"
        " --input {input.upstream:q} {input.files:q} {input.code:q} --"
        " python -m workflow_scripts.stages.evaluation {params.command:q} --out {output.result:q}"
