# Trainings and evaluations.
#   student_train          -> <output_dir>/final_model/     kd, sft, baseline
#   dpo_training           -> <output_dir>/final_policy/    dpo
#   evaluation             -> <output_dir>/evaluation.json
#   reference_evaluation   -> <root>/reference/<artefact>/evaluation.json    untrained student, teacher
# Records in <run_dir>/stages/, CodeCarbon rows in <run_dir>/codecarbon/.

RULES += [
    Metered(
        stage,
        folder=RUN_DIR,
        input={
            "check": lambda wildcards: PLAN.experiments[wildcards.experiment].check,
        },
        output={"manifest": f"{OUTPUT_DIR}/{STAGES[stage].folder}/manifest.json"},
        jobs={name: PLAN.experiments[name].training for name in PLAN.trained_by(stage)},
        by="experiment",
        launcher=lambda wildcards: PLAN.launcher(wildcards.experiment),
        extra=lambda wildcards, input, output: [
            *("--name", wildcards.experiment),
            *("--wandb", PLAN.wandb(wildcards.experiment)),
        ],
        threads=STAGE_THREADS,
        resources={
            "nodes": lambda wildcards: PLAN.nodes(wildcards.experiment),
            "processes": lambda wildcards: PLAN.processes(wildcards.experiment),
        },
        constraints={"experiment": "|".join(PLAN.trained_by(stage)) or "(?!)"},
    )
    for stage in TRAININGS
]
RULES += [
    Metered(
        "evaluation",
        folder=RUN_DIR,
        output={"result": f"{OUTPUT_DIR}/evaluation.json"},
        jobs={name: plan.evaluation for name, plan in PLAN.experiments.items()},
        by="experiment",
        threads=STAGE_THREADS,
    ),
    Metered(
        "reference_evaluation",
        stage="evaluation",
        folder=f"{ROOT}/reference/{{artefact}}",
        output={"result": f"{ROOT}/reference/{{artefact}}/evaluation.json"},
        jobs=PLAN.references,
        by="artefact",
        threads=STAGE_THREADS,
    ),
]
