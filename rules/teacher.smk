# The teacher's output, made once and shared by all experiments whose settings agree.
#   cache_logits, merge_logits        -> <root>/teacher/<artefact>/logit_cache/          stage logit_caching
#   generate_answers, merge_answers   -> <root>/teacher/<artefact>/synthetic_dataset/    stage synthetic_generation
#   rank_pairs, merge_pairs           -> <root>/teacher/<artefact>/preference_dataset/   stage preference_dataset
# The first of each pair does one part (`scatter`) with the model, the second gathers the parts and needs no GPU. The record
# of both together is stages/<stage>.json; codecarbon/ and logs/ lie beside it.

for stage, (part_rule, merge_rule) in TEACHER_RULES.items():

    rule:
        name:
            part_rule
        input:
            upstream=teacher_upstream(stage),
            code=code(f"stages.{stage}"),
            prerun=ancient(PRERUN),
        output:
            manifest=temp(f"{TEACHER_DIR}/parts/{stage}/{{part}}.json"),
            record=temp(f"{TEACHER_DIR}/parts/{stage}/{{part}}.record.json"),
        log:
            f"{TEACHER_DIR}/logs/{stage}.{{part}}.log",
        conda:
            "../envs/conda.yaml"
        envmodules:
            *MODULES,
        threads: STAGE_THREADS
        resources:
            meter=meters,
        params:
            meter=meter(stage, "teacher", TEACHER_DIR),
            command=teacher_command(stage),
            module=f"workflow_scripts.stages.{stage}",
        shell:
            "{params.meter:q} --idle {input.prerun:q} --record {output.record:q} --log {log:q}"
            " --part {wildcards.part:q} --input {input.upstream:q} {input.code:q} --"
            " python -m {params.module:q} {params.command:q} --part {wildcards.part:q} --out {output.manifest:q}"

    rule:
        name:
            merge_rule
        input:
            parts=teacher_parts(stage),
            upstream=teacher_upstream(stage),
            code=code(f"stages.{stage}"),
            merge=code(f"stages.{merge_rule}"),
            prerun=ancient(PRERUN),
        output:
            manifest=f"{TEACHER_DIR}/{TEACHER_FOLDER[stage]}/manifest.json",
            record=f"{TEACHER_DIR}/stages/{stage}.json",
        log:
            f"{TEACHER_DIR}/logs/{stage}.log",
        conda:
            "../envs/conda.yaml"
        envmodules:
            *MODULES,
        resources:
            meter=meters,
        params:
            meter=meter(stage, "teacher", TEACHER_DIR),
            command=teacher_command(stage),
            module=f"workflow_scripts.stages.{merge_rule}",
            split=untracked_count(stage),
        shell:
            "{params.meter:q} --idle {input.prerun:q} --record {output.record:q} --log {log:q}"
            " --parts {params.split} --input {input.upstream:q} {input.code:q} --"
            " python -m {params.module:q} {params.command:q} --parts {input.parts:q} --out {output.manifest:q}"
