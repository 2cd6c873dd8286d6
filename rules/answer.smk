# From records to the answer.
#   experiment_summary  -> <run_dir>/experiment_summary.json, run_config.yaml, environment.json;
#                          reads <root>/forecast.json where `make forecast` has left one: no input, so it makes nothing stale
#   export_model, export_policy -> <output_dir>/final_model/README.md (final_policy/): the model card; <run_dir>/boamps/
#   wandb_summary       -> <run_dir>/wandb.json: final energies and qualities are in the experiment's W&B run; where it is enabled
#   comparison          -> <root>/comparison/    tables, verdicts, figures of the report


report: "../workflow_scripts/report/captions/report.rst"


CAPTIONS = "../workflow_scripts/report/captions"
SHOWN = {  # output: file, category in Snakemake's report, label
    "answer": ("answer.html", "Answer", "the comparison on one page"),
    "energy": ("energy_by_stage.svg", "Energy", "energy by stage"),
    "quality": ("energy_quality.svg", "Quality", "energy and quality"),
    "rows": ("quality_by_row.svg", "Quality", "quality by row"),
    "reuse": ("cost_by_reuse.svg", "Reuse", "cost over reuses"),
    "break_even": ("break_even.csv", "Reuse", "verdicts and N*"),
    "levels": ("energy_to_quality.csv", "Quality", "energy to quality"),
    "repayment": ("repayment.csv", "Reuse", "tokens until repaid T*"),
    "power": ("power.svg", "Course", "power over time"),
    "loss": ("loss_by_joules.svg", "Course", "loss over joules"),
    "table": ("comparison.csv", "Tables", "experiments"),
    "stages": ("stage_energy.csv", "Tables", "stages"),
    "amortised": ("amortised.csv", "Tables", "cost over reuses"),
    "runs": ("runs.csv", "Tables", "runs"),
    "qualities": ("qualities.csv", "Quality", "other qualities"),
}


def shown(file, category, label):
    """A file of the comparison that stands in the report, with the caption of its name."""
    return report(
        f"{ROOT}/comparison/{file}",
        caption=f"{CAPTIONS}/{Path(file).stem}.rst",
        category=category,
        labels={"what": label},
    )


RULES += [
    Metered(
        "experiment_summary",
        program="accounting.summary",
        folder=RUN_DIR,
        input={"upstream": lambda wildcards: PLAN.summary_inputs(wildcards.experiment)},
        output={
            "summary": SUMMARY,
            "environment": f"{RUN_DIR}/environment.json",
            "run_config": f"{RUN_DIR}/run_config.yaml",
            "validation": f"{OUTPUT_DIR}/prerun_validation/validation.json",
        },
        beside=lambda wildcards: PLAN.experiments[wildcards.experiment].shared,
        jobs={name: PLAN.summary_job(name) for name in PLAN.experiments},
        by="experiment",
        extra=lambda wildcards, input, output: [
            *("--plan", canonical(PLAN.summary_plan(wildcards.experiment, PRERUN))),
            *("--config", PLAN.resolved(wildcards.experiment)),
            *PLAN.forecast_options(wildcards.experiment),
        ],
    ),
    Metered(
        "wandb_summary",
        folder=RUN_DIR,
        input={"summary": SUMMARY},
        above_idle=False,
        output={"note": f"{RUN_DIR}/wandb.json"},
        extra=lambda wildcards, input, output: [
            *("--summary", input.summary, "--wandb", PLAN.wandb(wildcards.experiment)),
            *("--config", PLAN.resolved(wildcards.experiment)),
        ],
    ),
    Metered(
        "comparison",
        folder=f"{ROOT}/comparison",
        input={"summaries": expand(SUMMARY, experiment=PLAN.comparison.experiments)},
        output={
            "comparison": COMPARISON,
            **{name: shown(*entry) for name, entry in SHOWN.items()},
            "markdown": f"{ROOT}/comparison/comparison.md",
            "latex": f"{ROOT}/comparison/comparison.tex",
        },
        jobs={"": PLAN.comparison_job()},
        above_idle=False,
        extra=lambda wildcards, input, output: [
            *("--summary", *input.summaries),
            *PLAN.comparison_options(),
        ],
    ),
]
for training in TRAININGS:
    folder = STAGES[training].folder
    RULES += [
        Metered(
            exports()[folder],
            stage="export",
            jobs={name: PLAN.export_job(name) for name in PLAN.trained_by(training)},
            by="experiment",
            folder=RUN_DIR,
            input={
                "summary": SUMMARY,
                "config": f"{RUN_DIR}/run_config.yaml",
                "model": f"{OUTPUT_DIR}/{folder}/manifest.json",
            },
            output={
                "card": f"{OUTPUT_DIR}/{folder}/README.md",
                "boamps": directory(f"{RUN_DIR}/boamps"),
            },
            extra=lambda wildcards, input, output: [
                *("--summary", input.summary, "--config", input.config),
                *("--model", input.model, "--boamps", output.boamps),
            ],
            constraints={"experiment": "|".join(PLAN.trained_by(training)) or "(?!)"},
        )
    ]
