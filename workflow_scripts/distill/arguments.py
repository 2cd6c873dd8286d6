"""The training block of the settings as arguments of the Hugging Face Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from workflow_scripts.distill.models import compute_dtype
from workflow_scripts.distill.parallel import world_size
from workflow_scripts.errors import UserError
from workflow_scripts.settings.optional import missing_optimizer
from workflow_scripts.settings.schema import Training

OPTIMIZERS = {"adamw": "adamw_torch", "adafactor": "adafactor", "adamw_8bit": "adamw_8bit"}


class OptimizerMissing(UserError):
    """The chosen optimizer is not installed."""


def arguments(
    training: Training,
    seed: int,
    steps: int,
    folder: Path,
    log_interval: int,
    kind: type[TrainingArguments] = TrainingArguments,
    **more: Any,
) -> TrainingArguments:
    """Trainer arguments of a `kind`; steps are optimizer steps, checkpoints go to `folder`, `more` is the kind's own.

    Raises OptimizerMissing when the package of the optimizer is not there.
    """
    check_optimizer(training.optimizer)
    batch = training.batch_size // world_size()
    bf16 = compute_dtype(training.dtype) is torch.bfloat16
    shared = {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": batch,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "optim": OPTIMIZERS[training.optimizer],
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "warmup_steps": training.num_warmup_steps,
        "lr_scheduler_type": "constant_with_warmup" if training.schedule_type == "constant" else training.schedule_type,
        "bf16": bf16,
        "use_cpu": not torch.cuda.is_available(),
        "activation_checkpointing": training.gradient_checkpointing,
        # the Trainer saves after the last step, too: 12 bytes a parameter, removed again where checkpoints are not kept
        "save_strategy": "steps" if training.keep_checkpoints or steps > training.save_steps else "no",
        "save_steps": min(training.save_steps, steps),
        "save_total_limit": 2,
        "eval_strategy": "steps" if training.evaluated else "no",  # after the last step, too
        "eval_steps": training.eval_steps or steps + 1,  # by joules WorkCallback asks for them
        "logging_steps": log_interval,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # a loss that is not finite ends the training; the filter would show a mean instead
        "report_to": "none",  # the listener of WorkCallback logs
        "seed": seed,
        "data_seed": seed,
        "ddp_find_unused_parameters": False,
        "ddp_backend": "gloo" if world_size() > 1 and not torch.cuda.is_available() else None,
        "fsdp": training.fsdp,  # version 2, parameters resharded after the forward pass
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    config = kind(**shared | more)
    if config.n_gpu > 1:  # reading it sets the devices up
        config._n_gpu = 1  # one per process: the Trainer would else wrap the model in DataParallel where it sees several
    return config


def check_optimizer(name: str) -> None:
    """Raise OptimizerMissing when `training.optimizer` needs a package that is not installed."""
    if reason := missing_optimizer(name):
        raise OptimizerMissing(reason)
