# What every experiment starts from.
#   prerun          -> <root>/prerun/<host kind>/validation.json
#   prepare_model   -> <root>/models/<model>/model/           a Hugging Face folder, or a pointer to one
#   preprocess      -> <root>/corpus/<artefact>/dataset/      tokenised train and evaluation split
#   check_tokenizers -> <root>/models/<student>/checks/<teacher>.json, before the expensive stages
# Each with stages/<stage>.json (the record) and codecarbon/ beside it.

RULES += [
    # Snakemake adds prerun where its result is missing, `renew_the_prerun` where it no longer holds; by the `ancient` link
    # nothing finished becomes stale. The meter refuses a result of other settings.
    Metered(
        "prerun",
        folder=PRERUN_DIR,
        output={"validation": PRERUN},
        jobs={"": PLAN.prerun},
        extra=lambda wildcards, input, output: ["--options", PLAN.energy],
        tracked=False,
        above_idle=False,
    ),
    Metered(
        "prepare_model",
        folder=MODEL_DIR,
        output={"manifest": f"{MODEL_DIR}/model/manifest.json"},
        jobs=PLAN.models,
        by="model",
        extra=lambda wildcards, input, output: ["--download_dir", DOWNLOADS],
    ),
    Metered(
        "check_tokenizers",
        folder=f"{MODEL_DIR}/checks",
        input={
            "teacher": f"{ROOT}/models/{{teacher}}/model/manifest.json",
            "student": f"{MODEL_DIR}/model/manifest.json",
        },
        output={"proof": f"{MODEL_DIR}/checks/{{teacher}}.json"},
        record=f"{MODEL_DIR}/checks/{{teacher}}.record.json",
        named=("teacher", "student"),
        extra=lambda wildcards, input, output: ["--settings", "{}"],
        log=f"{MODEL_DIR}/logs/check_tokenizers.{{teacher}}.log",
        priority=100,
    ),
    Metered(
        "preprocess",
        folder=f"{ROOT}/corpus/{{artefact}}",
        output={"manifest": f"{ROOT}/corpus/{{artefact}}/dataset/manifest.json"},
        jobs=PLAN.corpora,
        by="artefact",
        extra=lambda wildcards, input, output: ["--download_dir", DOWNLOADS],
    ),
]
