"""The section `experiment`: what an experiment is called and seeded with."""

from __future__ import annotations

from pydantic import Field

from workflow_scripts.settings.section import Section


class Experiment(Section):
    """What this experiment is."""

    seed: int = Field(42, ge=0, description="Seed of the training: data order, dropout.")
    description: str = Field("", description="One sentence for tables and the report.")
