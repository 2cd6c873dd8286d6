"""rollout: the student answers training prompts of its corpus, as it is before a round of on-policy distillation.

python -m workflow_scripts.stages.rollout --settings JSON --student MANIFEST --corpus MANIFEST --part N-of-M --out MANIFEST
"""

from __future__ import annotations

from workflow_scripts.artefact import open_artefact
from workflow_scripts.distill import corpus
from workflow_scripts.distill.seeds import prompt_seed
from workflow_scripts.settings.opd import Opd
from workflow_scripts.stages.runtime.common import Arguments, run_stage
from workflow_scripts.stages.synthetic_generation import answer_part


def rollout(args: Arguments) -> None:
    """Answer the prompts of one part."""
    options = args.settings.opd
    questions = prompts_of(args, options)
    answer_part(args, "student", questions, options.generation, "opd.generation", "scatter.rollout")


def prompts_of(args: Arguments, options: Opd) -> dict[int, corpus.Messages]:
    """The round's prompts by example id, drawn from the training split by the seed of the generation."""
    folder, facts = open_artefact(args.inputs["corpus"], "corpus")
    found = corpus.questions(folder, "train", facts["splits"]["train"]["examples"])
    drawn = sorted(found, key=lambda example: prompt_seed(options.generation.seed, example))[: options.prompts_per_round]
    return {example: found[example] for example in sorted(drawn)}


if __name__ == "__main__":
    run_stage(rollout, ["student", "corpus"], ["part"])
