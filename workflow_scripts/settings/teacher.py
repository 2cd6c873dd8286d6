"""The section `teacher`: how the teacher computes when it writes and scores."""

from __future__ import annotations

from pydantic import Field

from workflow_scripts.settings.section import Section
from workflow_scripts.settings.training import Dtype


class Teacher(Section):
    """How the teacher computes when it writes, scores and ranks; the evaluation computes in `training.dtype`."""

    dtype: Dtype = Field(
        "auto",
        description="Compute type of the teacher stages; auto: bfloat16 on GPUs that have it and on CPUs with AMX or "
        "avx512_bf16, else float32.",
    )
