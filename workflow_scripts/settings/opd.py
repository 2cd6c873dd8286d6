"""The section `opd`: rounds of on-policy distillation."""

from __future__ import annotations

from pydantic import Field

from workflow_scripts.settings.distillation import DIVERGENCES, Divergence
from workflow_scripts.settings.generation import Generation
from workflow_scripts.settings.section import Section


class Opd(Section):
    """On-policy distillation: the student writes, the teacher scores, the student learns; the next round starts from there."""

    rounds: int = Field(1, ge=1, description="Rounds; each trains on the same share of training.token_budget.")
    prompts_per_round: int = Field(64, ge=1, description="Training prompts that the student answers per round.")
    divergence: Divergence = Field("reverse_kl", description=DIVERGENCES)
    beta: float = Field(0.5, gt=0, lt=1, description="divergence jsd: weight of the teacher in the mixture.")
    generation: Generation = Field(
        Generation(temperature=1.0, top_p=1.0, max_new_tokens=256),
        description="How the student writes; round r has the seed `seed` + r, from 0, for prompts and samples.",
    )
