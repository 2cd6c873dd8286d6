"""rollout: the student answers training prompts of its corpus, as it is before a round of on-policy distillation.

python -m workflow_scripts.stages.rollout --settings JSON --student MANIFEST --corpus MANIFEST --part N-of-M --out MANIFEST
"""

from __future__ import annotations

from workflow_scripts.artefact import open_artefact
from workflow_scripts.distill import corpus
from workflow_scripts.stages.runtime.common import Arguments, run_stage
from workflow_scripts.stages.synthetic_generation import answer_part


def rollout(args: Arguments) -> None:
    """Answer the prompts of one part."""
    options = args.settings.opd
    folder, facts = open_artefact(args.inputs["corpus"], "corpus")
    questions = corpus.drawn(folder, facts, options.generation.seed, options.prompts_per_round)
    answer_part(args, "student", questions, options.generation, "opd.generation", "scatter.rollout")


if __name__ == "__main__":
    run_stage(rollout, ["student", "corpus"], ["part"])
