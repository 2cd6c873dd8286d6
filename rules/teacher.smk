# The teacher's output, made once and shared by all experiments whose settings agree.
#   cache_logits, merge_logits        -> <root>/teacher/<artefact>/logit_cache/          stage logit_caching
#   generate_answers, merge_answers   -> <root>/teacher/<artefact>/synthetic_dataset/    stage synthetic_generation
#   write_rollouts, merge_rollouts    -> <root>/teacher/<artefact>/rollouts/             stage rollout, by the student
#   rank_pairs, merge_pairs           -> <root>/teacher/<artefact>/preference_dataset/   stage preference_dataset
# The first of each pair does one part (`scatter`) with the model, the second gathers the parts and needs no GPU. The record
# of both together is stages/<stage>.json; codecarbon/ and logs/ lie beside it. Parts lie in a folder of their own,
# <root>/teacher/<stage>-<hash of what the teacher's work depends on>/parts/.

TEACHER_DIR = f"{ROOT}/teacher/{{artefact}}"


def parts(stage):
    """Input functions: manifests and records of the parts to merge."""
    manifests = lambda wildcards: PLAN.parts(stage, wildcards.artefact)
    records = lambda wildcards: [
        path.removesuffix(".json") + ".record.json" for path in manifests(wildcards)
    ]
    return {"parts": manifests, "records": records}


for stage, split in splits():
    kept = str if split.keeps_parts else temp
    planned = PLAN.teacher[stage.name]
    RULES += [
        Metered(
            split.part_rule,
            stage=stage.name,
            folder=TEACHER_DIR,
            output={"manifest": kept(f"{TEACHER_DIR}/parts/{{part}}.json")},
            record=kept(f"{TEACHER_DIR}/parts/{{part}}.record.json"),
            jobs={artefact.raw: artefact.parts for artefact in planned.values()},
            by="artefact",
            extra=lambda wildcards, input, output: ["--part", wildcards.part],
            of_parts=lambda wildcards, input: ["--part", wildcards.part],
            log=f"{TEACHER_DIR}/logs/{stage.name}.{{part}}.log",
            constraints={"artefact": f"{stage.name}-[0-9a-f]+"},
        ),
        Metered(
            split.merge_rule,
            stage=stage.name,
            program=f"stages.{split.merge_rule}",
            folder=TEACHER_DIR,
            input=parts(stage.name),
            output={"manifest": f"{TEACHER_DIR}/{stage.folder}/manifest.json"},
            jobs={name: artefact.merge for name, artefact in planned.items()},
            by="artefact",
            extra=lambda wildcards, input, output: ["--parts", *input.parts],
            of_parts=lambda wildcards, input: (
                ["--parts", *input.records] if input.records else []
            ),
            code=(
                () if split.keeps_parts else (f"workflow_scripts.stages.{stage.name}",)
            ),
        ),
    ]
