"""The section `experiment`: what an experiment is called, how it is seeded, and how often it is run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from workflow_scripts.settings.section import Section


class Experiment(Section):
    """What this experiment is, and its runs."""

    seed: int = Field(42, ge=0, description="Seed of the training: data order, dropout.")
    seeds: list[Annotated[int, Field(ge=0)]] | None = Field(
        None,
        min_length=1,
        description="One run per seed, named `<experiment>-seed<N>`; all are compared as one method. Null: one run of `seed`.",
    )
    teacher_seeds: bool = Field(
        False, description="The teacher samples with the seed of the run. False: the runs share what the teacher made."
    )
    replicates: int = Field(
        1,
        ge=1,
        description="Measurements of each teacher stage. The runs use them in turn, so there are as many seeds at least. What "
        "is made is the same; what it costs is measured anew.",
    )
    replicate: int = Field(1, ge=1, description="The measurement of the teacher stages that a run uses; set by `replicates`.")
    description: str = Field("", description="One sentence for tables and the report.")

    @model_validator(mode="after")
    def _runs_differ(self) -> Experiment:
        seeds = self.seeds or [self.seed]
        if twice := [seed for n, seed in enumerate(seeds) if seed in seeds[:n]]:
            raise ValueError(f"seeds = {seeds} has {twice[0]} twice: give each run a seed of its own")
        if self.replicates > len(seeds):
            raise ValueError(f"replicates = {self.replicates}, but there are {len(seeds)} seed(s): name as many in seeds")
        return self
