"""The section `comparison`: what is compared."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from workflow_scripts.settings.section import Name, Section

Quality = Annotated[str, StringConstraints(pattern=r"^(cross_entropy|bits_per_byte|kl_to_teacher|top1_agreement|[^/]+/[^/]+)$")]


class Comparison(Section):
    """What `snakemake` without a target builds and compares."""

    experiments: list[Name] = Field(min_length=1, description="Names of the compared experiments.")
    baseline: Name | None = Field(
        None,
        description="The experiment that verdicts are against. If it is swept over the student, each method is compared with "
        "the variant that starts from its own model.",
    )
    quality: Quality = Field(
        "cross_entropy",
        description="Quality axis: cross_entropy, bits_per_byte (across vocabularies), kl_to_teacher, top1_agreement, "
        "instructions/followed, or a metric of evaluation.lm_eval_tasks as <task>/<metric>, gsm8k/exact_match,strict-match for "
        "one.",
    )
    target_quality: float | None = Field(
        None,
        description="The quality that a model must reach, on the axis of `quality`: verdicts are given there, and tokens until "
        "repaid for students that reach it. Null: the hardest that all runs of a method and of the baseline reach.",
    )
