# From records to the answer.
#   experiment_summary  -> <run_dir>/experiment_summary.json, run_config.yaml, environment.json, stages/ of shared records;
#                          reads <root>/forecast.json where `make forecast` has left one: no input, so it makes nothing stale
#   export_model, export_policy -> <output_dir>/final_model/README.md (final_policy/): the model card; <run_dir>/boamps/
#   wandb_summary       -> <run_dir>/wandb.json: final energies and qualities are in the experiment's W&B run; where it is enabled
#   comparison          -> <root>/comparison/    tables, break-even, figures of the report


report: "../workflow_scripts/report/captions/report.rst"


rule experiment_summary:
    input:
        upstream=lambda wildcards: PLAN.summary_inputs(wildcards.experiment),
        code=code("accounting.summary"),
        prerun=ancient(PRERUN),
    output:
        summary=SUMMARY,
        environment=f"{RUN_DIR}/environment.json",
        run_config=f"{RUN_DIR}/run_config.yaml",
        validation=f"{OUTPUT_DIR}/prerun_validation/validation.json",
        record=f"{RUN_DIR}/stages/experiment_summary.json",
    log:
        f"{RUN_DIR}/logs/experiment_summary.log",
    conda:
        "../envs/conda.yaml"
    envmodules:
        *MODULES,
    resources:
        meter=meters,
    params:
        meter=meter("experiment_summary", "accounting", f"{RUN_DIR}"),
        plan=lambda wildcards: PLAN.summary_plan(wildcards.experiment, PRERUN),
        config=untracked(lambda wildcards: PLAN.resolved(wildcards.experiment)),
        forecast=untracked(
            lambda wildcards: PLAN.forecast_options(wildcards.experiment)
        ),
    shell:
        "{params.meter:q} --idle {input.prerun:q} --record {output.record:q} --log {log:q}"
        " --input {input.upstream:q} {input.code:q} --"
        " python -m workflow_scripts.accounting.summary --plan {params.plan:q}"
        " --config {params.config:q} {params.forecast:q} --out {output.summary:q}"


for final, export in EXPORTS.items():

    rule:
        name:
            export
        input:
            summary=SUMMARY,
            config=f"{RUN_DIR}/run_config.yaml",
            model=f"{OUTPUT_DIR}/{final}/manifest.json",
            code=code("stages.export"),
            prerun=ancient(PRERUN),
        output:
            card=f"{OUTPUT_DIR}/{final}/README.md",
            boamps=directory(f"{RUN_DIR}/boamps"),
            record=f"{RUN_DIR}/stages/export.json",
        log:
            f"{RUN_DIR}/logs/export.log",
        wildcard_constraints:
            experiment="|".join(PLAN.trained_to(final)) or "(?!)",
        conda:
            "../envs/conda.yaml"
        envmodules:
            *MODULES,
        resources:
            meter=meters,
        params:
            meter=meter("export", "accounting", f"{RUN_DIR}"),
        shell:
            "{params.meter:q} --idle {input.prerun:q} --record {output.record:q} --log {log:q}"
            " --input {input.summary:q} {input.config:q} {input.model:q} {input.code:q} --"
            " python -m workflow_scripts.stages.export --summary {input.summary:q} --config {input.config:q}"
            " --model {input.model:q} --card {output.card:q} --boamps {output.boamps:q}"


rule wandb_summary:
    input:
        summary=SUMMARY,
        code=code("stages.wandb_summary"),
    output:
        note=f"{RUN_DIR}/wandb.json",
        record=f"{RUN_DIR}/stages/wandb_summary.json",
    log:
        f"{RUN_DIR}/logs/wandb_summary.log",
    conda:
        "../envs/conda.yaml"
    envmodules:
        *MODULES,
    resources:
        meter=meters,
    params:
        meter=meter("wandb_summary", "accounting", f"{RUN_DIR}"),
        wandb=untracked(lambda wildcards: PLAN.wandb(wildcards.experiment)),
        config=untracked(lambda wildcards: PLAN.resolved(wildcards.experiment)),
    shell:
        "{params.meter:q} --record {output.record:q} --log {log:q}"
        " --input {input.summary:q} {input.code:q} --"
        " python -m workflow_scripts.stages.wandb_summary --summary {input.summary:q}"
        " --wandb {params.wandb:q} --config {params.config:q} --out {output.note:q}"


rule comparison:
    input:
        summaries=expand(SUMMARY, experiment=PLAN.comparison.experiments),
        code=code("stages.comparison"),
    output:
        comparison=COMPARISON,
        answer=report(
            f"{ROOT}/comparison/answer.html",
            caption="../workflow_scripts/report/captions/answer.rst",
            category="Answer",
            labels={"what": "the comparison on one page"},
        ),
        energy=report(
            f"{ROOT}/comparison/energy_by_stage.svg",
            caption="../workflow_scripts/report/captions/energy_by_stage.rst",
            category="Energy",
            labels={"what": "energy by stage"},
        ),
        quality=report(
            f"{ROOT}/comparison/energy_quality.svg",
            caption="../workflow_scripts/report/captions/energy_quality.rst",
            category="Quality",
            labels={"what": "energy and quality"},
        ),
        reuse=report(
            f"{ROOT}/comparison/cost_by_reuse.svg",
            caption="../workflow_scripts/report/captions/cost_by_reuse.rst",
            category="Reuse",
            labels={"what": "cost over reuses"},
        ),
        break_even=report(
            f"{ROOT}/comparison/break_even.csv",
            caption="../workflow_scripts/report/captions/break_even.rst",
            category="Reuse",
            labels={"what": "break-even N*"},
        ),
        repayment=report(
            f"{ROOT}/comparison/repayment.csv",
            caption="../workflow_scripts/report/captions/repayment.rst",
            category="Reuse",
            labels={"what": "tokens until repaid T*"},
        ),
        power=report(
            f"{ROOT}/comparison/power.svg",
            caption="../workflow_scripts/report/captions/power.rst",
            category="Course",
            labels={"what": "power over time"},
        ),
        loss=report(
            f"{ROOT}/comparison/loss_by_joules.svg",
            caption="../workflow_scripts/report/captions/loss_by_joules.rst",
            category="Course",
            labels={"what": "loss over joules"},
        ),
        table=report(
            f"{ROOT}/comparison/comparison.csv",
            caption="../workflow_scripts/report/captions/comparison.rst",
            category="Tables",
            labels={"what": "experiments"},
        ),
        stages=report(
            f"{ROOT}/comparison/stage_energy.csv",
            caption="../workflow_scripts/report/captions/stage_energy.rst",
            category="Tables",
            labels={"what": "stages"},
        ),
        amortised=report(
            f"{ROOT}/comparison/amortised.csv",
            caption="../workflow_scripts/report/captions/amortised.rst",
            category="Tables",
            labels={"what": "cost over reuses"},
        ),
        runs=report(
            f"{ROOT}/comparison/runs.csv",
            caption="../workflow_scripts/report/captions/runs.rst",
            category="Tables",
            labels={"what": "runs"},
        ),
        markdown=f"{ROOT}/comparison/comparison.md",
        latex=f"{ROOT}/comparison/comparison.tex",
        record=f"{ROOT}/comparison/stages/comparison.json",
    log:
        f"{ROOT}/comparison/logs/comparison.log",
    conda:
        "../envs/conda.yaml"
    envmodules:
        *MODULES,
    resources:
        meter=meters,
    params:
        meter=meter("comparison", "accounting", f"{ROOT}/comparison"),
        options=PLAN.comparison_options(),
    shell:
        "{params.meter:q} --record {output.record:q} --log {log:q}"
        " --input {input.summaries:q} {input.code:q} --"
        " python -m workflow_scripts.stages.comparison --summary {input.summaries:q}"
        " {params.options:q} --out {output.comparison:q}"
