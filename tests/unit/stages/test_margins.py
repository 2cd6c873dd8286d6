"""The margin of held-out pairs is that of the loss which was trained."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from workflow_scripts.stages import evaluation


@pytest.mark.parametrize(("loss_type", "margin", "accuracy"), [("sigmoid", -0.5, 0.0), ("sigmoid_norm", 0.04, 1.0)])
def test_a_margin_is_per_token_where_the_loss_is(
    monkeypatch: pytest.MonkeyPatch, loss_type: str, margin: float, accuracy: float
) -> None:
    """The chosen answer of 10 tokens gained 5 nats on the reference, the rejected one of 100 tokens 10 nats; beta is 0.1."""
    rows = [{"input_ids": [1] * (3 + n), "loss_mask": [0] * 3 + [1] * n} for n in (10, 100)]

    def likelihoods(model: str, batch: list[dict[str, Any]], pad: int) -> list[float]:
        return [{10: 5.0, 100: 10.0}[sum(row["loss_mask"])] * (model == "policy") for row in batch]

    monkeypatch.setattr(evaluation, "log_likelihoods", likelihoods)
    settings: Any = SimpleNamespace(
        dpo=SimpleNamespace(beta=0.1, loss_type=loss_type), evaluation=SimpleNamespace(batch_size=2)
    )
    progress: Any = SimpleNamespace(add=lambda **counts: None)
    found = evaluation.margins("policy", "reference", rows, SimpleNamespace(pad_token_id=0), settings, progress)
    assert found["mean_margin"] == pytest.approx(margin) and (found["pairs"], found["accuracy"]) == (1, accuracy)
