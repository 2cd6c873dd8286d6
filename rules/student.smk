# Trainings and evaluations.
#   student_train          -> <output_dir>/final_model/     kd, sft, opd, baseline
#   train_round            -> <root>/rounds/<artefact>/final_model/    opd, all rounds but the last
#   dpo_training           -> <output_dir>/final_policy/    dpo
#   evaluation             -> <output_dir>/evaluation.json
#   reference_evaluation   -> <root>/reference/<artefact>/evaluation.json    untrained student, teacher
# Records in <run_dir>/stages/, CodeCarbon rows in <run_dir>/codecarbon/.

RULES += [
    Metered(
        stage,
        folder=RUN_DIR,
        input={"check": lambda wildcards: PLAN.experiments[wildcards.experiment].check},
        output={"manifest": f"{OUTPUT_DIR}/{STAGES[stage].folder}/manifest.json"},
        jobs={name: PLAN.experiments[name].training for name in PLAN.trained_by(stage)},
        by="experiment",
        launcher=lambda wildcards: PLAN.launcher(wildcards.experiment),
        extra=lambda wildcards, input, output: [
            *("--name", wildcards.experiment),
            *("--wandb", PLAN.wandb(wildcards.experiment)),
        ],
        resources={
            "nodes": lambda wildcards: PLAN.nodes(wildcards.experiment),
            "processes": lambda wildcards: PLAN.processes(wildcards.experiment),
        },
        constraints={"experiment": "|".join(PLAN.trained_by(stage)) or "(?!)"},
    )
    for stage in TRAININGS
]
# Trainings of the rounds before the last one, shared by experiments with the same beginning.
RULES += [
    Metered(
        "train_round",
        stage="student_train",
        folder=f"{ROOT}/rounds/{{artefact}}",
        output={"manifest": f"{ROOT}/rounds/{{artefact}}/final_model/manifest.json"},
        jobs=PLAN.rounds,
        by="artefact",
        launcher=lambda wildcards: PLAN.launcher(wildcards.artefact),
        extra=lambda wildcards, input, output: ["--name", wildcards.artefact],
        resources={
            "nodes": lambda wildcards: PLAN.nodes(wildcards.artefact),
            "processes": lambda wildcards: PLAN.processes(wildcards.artefact),
        },
        constraints={"artefact": "round-[0-9a-f]+"},
    ),
    Metered(
        "evaluation",
        folder=RUN_DIR,
        output={"result": f"{OUTPUT_DIR}/evaluation.json"},
        jobs={name: plan.evaluation for name, plan in PLAN.experiments.items()},
        by="experiment",
    ),
    Metered(
        "reference_evaluation",
        stage="evaluation",
        folder=f"{ROOT}/reference/{{artefact}}",
        output={"result": f"{ROOT}/reference/{{artefact}}/evaluation.json"},
        jobs=PLAN.references,
        by="artefact",
    ),
]
