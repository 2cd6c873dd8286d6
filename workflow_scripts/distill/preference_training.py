"""Direct preference optimisation by TRL: the only module that imports it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trl import DPOConfig, DPOTrainer

from workflow_scripts.distill.training import OrderedSampling
from workflow_scripts.progress import Progress


def dpo_options(beta: float, loss_type: str) -> dict[str, Any]:
    """What `arguments` needs for DPO beside the training block; the reference's log-probabilities are computed once."""
    return {"kind": DPOConfig, "beta": beta, "loss_type": loss_type, "precompute_ref_log_probs": True, "max_length": None}


class PreferenceTrainer(OrderedSampling, DPOTrainer):
    """TRL's DPO with a fixed data order, on pairs that are tokens already (`prompt_ids`, `chosen_ids`, `rejected_ids`).

    TRL would tokenise the texts anew and append an end token to answers that were cut, and so teach to stop in mid-sentence.
    """

    def __init__(self, *args: Any, order: Sequence[int], progress: Progress | None = None, **kwargs: Any) -> None:
        self.order, self.progress = order, progress
        super().__init__(*args, **kwargs)

    def _precompute_ref_logps(self, dataset: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        with self._phase("work" if name == "train" else "evaluate"):  # of the training's cost as much as its steps
            return super()._precompute_ref_logps(dataset, name, *args, **kwargs)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset
