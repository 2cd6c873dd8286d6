# The shape of every metered rule, written once: the meter's command line, then the stage's.

remember(workflow, RULES)
for metered in RULES:

    rule:
        name:
            metered.name
        input:
            **metered.inputs(ancient(PRERUN)),
        output:
            **metered.outputs(),
        log:
            metered.logged,
        wildcard_constraints:
            **metered.constraints,
        priority: metered.turn(PLAN)
        conda:
            "../envs/conda.yaml"
        envmodules:
            *MODULES,
        threads: metered.threads
        resources:
            **metered.resources,
            meter=meters,
        params:
            **metered.params(PLAN),
        shell:
            "{params.meter:q} --log {log:q} -- {params.command:q}"
