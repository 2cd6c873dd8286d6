"""Low-rank adapters by peft, put into a model in place: its class and the path of its loss stay what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from workflow_scripts.distill.models import ModelError
from workflow_scripts.settings.schema import Lora

FOLDER = "adapter"  # in the folder of the merged model
_OF_PEFT = "base_model.model."  # what peft's own wrapper puts before the names of a model


def add_adapters(model: Any, lora: Lora, seed: int) -> None:
    """Give linear layers of the decoder an adapter that adds nothing yet, and freeze all other weights.

    The same `seed` gives the same adapters. Raises ModelError naming a target that the model does not have.
    """
    import peft

    linear = {name for name, module in model.model.named_modules() if isinstance(module, torch.nn.Linear)}
    known = {name.rpartition(".")[2] for name in linear}
    if missing := [name for name in lora.target_modules if name not in known]:
        raise ModelError(
            f"training.lora.target_modules: the model has no linear layer {', '.join(missing)} in its decoder: "
            f"choose of {', '.join(sorted(known))}"
        )
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        task_type=peft.TaskType.CAUSAL_LM,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, model)


def merge_adapters(model: Any, folder: Path, base: str) -> None:
    """Write the adapters to `folder`, as peft loads them onto the model `base`, and merge them into the weights of `model`."""
    import peft
    from peft.tuners.tuners_utils import BaseTunerLayer
    from safetensors.torch import save_file

    (config,) = model.peft_config.values()
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(folder)
    own = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    weights = {_OF_PEFT + name: value.contiguous() for name, value in own.items()}
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.get_base_layer())
    del model.peft_config
