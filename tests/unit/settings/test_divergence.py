"""Divergences that a cache cannot give are refused with their keys."""

import pytest
from pydantic import ValidationError

from workflow_scripts.settings.distillation import Distillation


@pytest.mark.parametrize("divergence", ["reverse_kl", "jsd"])
@pytest.mark.parametrize("lacking", [{"sampling": "random"}, {"tail": "zero"}, {"tail": "renormalise"}])
def test_a_divergence_from_the_student_needs_mass_everywhere(divergence: str, lacking: dict[str, str]) -> None:
    assert Distillation(divergence=divergence).tail == "ghost"
    assert Distillation(divergence="forward_kl", **lacking)
    with pytest.raises(ValidationError, match=f"divergence = '{divergence}' needs sampling = 'top_k' and tail = 'ghost'"):
        Distillation(divergence=divergence, **lacking)
