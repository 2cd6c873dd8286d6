"""Trainings on the Hugging Face Trainer: one fused loss for kd, sft and baseline; TRL's DPO for preferences."""

from __future__ import annotations

import signal
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from workflow_scripts.distill import checkpoints
from workflow_scripts.distill.batching import pad_rows
from workflow_scripts.distill.corpus import loss_tokens
from workflow_scripts.distill.logit_cache import LogitCache
from workflow_scripts.distill.losses import SparseTeacher, fused_distillation_loss
from workflow_scripts.distill.models import compute_dtype
from workflow_scripts.distill.parallel import any_process, barrier, is_main, sum_over_processes, world_size
from workflow_scripts.progress import Progress
from workflow_scripts.settings.schema import Training
from workflow_scripts.settings.slices import KdLoss

IGNORE = -100
FILLER = -1  # number of a row without loss
SHOWN = ("loss", "cross_entropy", "kl", "learning_rate", "rewards/margins", "rewards/accuracies", "eval_loss")


class ParallelError(RuntimeError):
    """Several processes were asked for in a way that does not work here."""


class MemoryShort(RuntimeError):
    """The accelerator has no room for a step."""


class Stopped(RuntimeError):
    """The training was asked to stop by a signal; a checkpoint holds its work."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}; a checkpoint was written")
        self.exit_code = 128 + signum


class _FixedOrder(Sampler[int]):
    """Yields a prepared order of indices, which may repeat or leave out rows."""

    def __init__(self, order: Sequence[int]) -> None:
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[int]:
        return iter(self._order)


class _OrderedSampling:
    """Trainer mix-in: the data order is the one given, not the Trainer's own shuffle."""

    order: Sequence[int]

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return _FixedOrder(self.order)


def _distillation_forward(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    labels: torch.Tensor,
    kd: KdLoss | None = None,
    teacher_ids: torch.Tensor | None = None,
    teacher_logits: torch.Tensor | None = None,
    teacher_lse: torch.Tensor | None = None,
    teacher_entropy: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Loss sums of a batch, as the model's own forward, so that autocast and distributed wrappers stay in place."""
    hidden = model.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    targets = labels.roll(-1, dims=1)
    predicts = targets != IGNORE
    teacher = None
    if kd is not None and teacher_ids is not None and teacher_logits is not None and teacher_lse is not None:
        teacher = SparseTeacher(teacher_ids, teacher_logits, teacher_lse, teacher_entropy)
    terms = fused_distillation_loss(
        hidden[predicts],
        model.lm_head.weight,
        targets[predicts],
        teacher,
        kd.alpha if kd else 1.0,
        kd.temperature if kd else 1.0,
        kd.tail if kd else "ghost",
        vocabulary=getattr(model, "vocabulary", None),
    )
    return {"loss": terms.total, "cross_entropy": terms.cross_entropy, "kl": terms.kl}


class DistillationTrainer(_OrderedSampling, SFTTrainer):
    """SFT and KD with one fused loss, averaged over the loss tokens of the whole optimizer step."""

    def __init__(self, *args: Any, order: Sequence[int], kd: KdLoss | None, **kwargs: Any) -> None:
        self.order = order
        super().__init__(*args, **kwargs)
        self._kd = kd
        self.model.forward = types.MethodType(_distillation_forward, self.model)
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Sum over loss tokens divided by the tokens of the optimizer step (over all processes, where averaged)."""
        sums = model(**inputs, kd=self._kd)
        count = (inputs["labels"] != IGNORE).sum()
        loss = sums["loss"] / (count if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        mode = "train" if self.model.training else "eval"
        with torch.no_grad():
            totals = sum_over_processes(torch.stack([sums["cross_entropy"], sums["kl"], count.to(sums["kl"].dtype)]).detach())
        for name, total in zip(("cross_entropy", "kl"), totals[:2], strict=True):
            self._metrics[mode][name].append((total / totals[2]).item())
        return (loss, sums) if return_outputs else loss


class Collator:
    """Batches of tokenised rows, with the teacher's logits fetched by example id when a cache is given.

    Gives `input_ids`, `attention_mask`, `labels` [B, L] and for KD `teacher_ids`, `teacher_logits` [N, k],
    `teacher_lse` [N] and, of random draws, `teacher_entropy` [N]; N the loss tokens of the batch in row order. Rows are
    numbered through both splits; evaluation rows have no teacher, their loss is cross entropy.
    """

    def __init__(
        self,
        train: Sequence[dict[str, Any]],
        evaluation: Sequence[dict[str, Any]],
        pad_id: int,
        cache: LogitCache | None = None,
        temperature: float = 1.0,
    ) -> None:
        self._rows, self._train = [*train, *evaluation], len(train)
        self._pad_id, self._cache, self._temperature = pad_id, cache, temperature

    def __call__(self, examples: Sequence[dict[str, int]]) -> dict[str, torch.Tensor]:
        """Collate examples of `row_numbers`."""
        numbers = [example["row"] for example in examples]
        rows = [self._rows[number] if number != FILLER else self._filler() for number in numbers]
        batch = pad_rows(rows, self._pad_id)
        labels = torch.full_like(batch.input_ids, IGNORE)
        labels[:, 1:] = torch.where(batch.predicts[:, :-1], batch.input_ids[:, 1:], IGNORE)
        tensors = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": labels}
        if self._cache is not None and numbers[0] < self._train:
            real = [row for row, number in zip(rows, numbers, strict=True) if number != FILLER]
            found = [self._cache.teacher(r["example_id"], self._temperature, loss_tokens(r)) for r in real]
            found = found or [self._cache.nothing()]
            tensors["teacher_ids"] = torch.cat([t.ids for t in found])
            tensors["teacher_logits"] = torch.cat([t.logits for t in found])
            tensors["teacher_lse"] = torch.cat([t.lse for t in found])
            if entropies := [t.entropy for t in found if t.entropy is not None]:
                tensors["teacher_entropy"] = torch.cat(entropies)
        return tensors

    def _filler(self) -> dict[str, Any]:
        """A row without loss."""
        return {"input_ids": [self._pad_id], "loss_mask": [0]}


class PreferenceTrainer(_OrderedSampling, DPOTrainer):
    """TRL's DPO with a fixed data order, on pairs that are tokens already (`prompt_ids`, `chosen_ids`, `rejected_ids`).

    TRL would tokenise the texts anew and append an end token to answers that were cut, and so teach to stop in mid-sentence.
    """

    def __init__(self, *args: Any, order: Sequence[int], **kwargs: Any) -> None:
        self.order = order
        super().__init__(*args, **kwargs)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


@dataclass(frozen=True)
class StepWork:
    """Typed work of one optimizer step."""

    examples: int
    loss: int
    input: int
    padded: int


@dataclass(frozen=True)
class ExampleWork:
    """Loss tokens of one example and the lengths of its sequences (one; for a preference pair two)."""

    loss: int
    lengths: tuple[int, ...]


def work_per_step(order: Sequence[int], work: Sequence[ExampleWork], batch_size: int, accumulation: int) -> list[StepWork]:
    """Typed work of each optimizer step; every batch is padded to its longest sequence."""
    steps = []
    per_step = batch_size * accumulation
    for begin in range(0, len(order), per_step):
        step = order[begin : begin + per_step]
        padded = 0
        for b in range(0, len(step), batch_size):
            lengths = [length for i in step[b : b + batch_size] for length in work[i].lengths]
            padded += max(lengths) * len(lengths) - sum(lengths)
        loss, length = sum(work[i].loss for i in step), sum(sum(work[i].lengths) for i in step)
        steps.append(StepWork(len(step), loss, length, padded))
    return steps


class WorkCallback(TrainerCallback):
    """Reports work and metrics after every optimizer step; turns SIGTERM into a checkpoint and a clean stop.

    `listener` hears every log line of the Trainer, after the work that it covers was counted.
    """

    def __init__(
        self, progress: Progress, steps: Sequence[StepWork], listener: Callable[[Progress, dict[str, Any]], None] | None = None
    ) -> None:
        self._progress, self._steps, self._listener = progress, steps, listener
        self.signal: int | None = None
        signal.signal(signal.SIGTERM, self._remember)

    def _remember(self, signum: int, frame: Any) -> None:
        self.signal = signum

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """State what earlier attempts left done."""
        if state.global_step:
            done = self._steps[: state.global_step]
            self._progress.resume(
                steps=len(done),
                examples=sum(s.examples for s in done),
                loss=sum(s.loss for s in done),
                input=sum(s.input for s in done),
                padded=sum(s.padded for s in done),
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the step's work."""
        work = self._steps[state.global_step - 1]
        self._progress.add(steps=1, examples=work.examples, loss=work.loss, input=work.input, padded=work.padded)
        if any_process(self.signal is not None, args.device):
            self.signal = self.signal or signal.SIGTERM
            control.should_save = True
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Keep the newest metrics."""
        if shown := {k: float(v) for k, v in (logs or {}).items() if k in SHOWN}:
            self._progress.measure(shown)
        if self._listener is not None and logs:
            self._listener(self._progress, logs)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A whole checkpoint makes the work so far durable."""
        barrier()  # other processes write their random state into the same folder
        if is_main():
            checkpoints.seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")
        self._progress.saved()


def arguments(training: Training, seed: int, steps: int, folder: Path, log_interval: int) -> dict[str, Any]:
    """Trainer arguments shared by all pipelines; steps are optimizer steps, checkpoints go to `folder`."""
    batch = training.batch_size // world_size()
    bf16 = compute_dtype(training.dtype) is torch.bfloat16
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": batch,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "optim": {"adamw": "adamw_torch", "adafactor": "adafactor"}[training.optimizer],
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "warmup_steps": training.num_warmup_steps,
        "lr_scheduler_type": "constant_with_warmup" if training.schedule_type == "constant" else training.schedule_type,
        "bf16": bf16,
        "use_cpu": not torch.cuda.is_available(),
        "activation_checkpointing": training.gradient_checkpointing,
        "save_strategy": "steps",
        "save_steps": min(training.save_steps, steps),
        "save_total_limit": 2,
        "eval_strategy": "steps" if training.eval_steps else "no",
        "eval_steps": training.eval_steps,
        "logging_steps": log_interval,
        "logging_first_step": True,
        "report_to": "none",  # the listener of WorkCallback logs
        "seed": seed,
        "data_seed": seed,
        "ddp_find_unused_parameters": False,
        "ddp_backend": "gloo" if world_size() > 1 and not torch.cuda.is_available() else None,
        "fsdp": training.fsdp,  # version 2, parameters resharded after the forward pass
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "max_length": None,
    }


def sft_config(shared: dict[str, Any]) -> SFTConfig:
    """TRL configuration of kd, sft and baseline; rows are prepared already."""
    return _one_device(SFTConfig(**shared, dataset_kwargs={"skip_prepare_dataset": True}, packing=False))


def dpo_config(shared: dict[str, Any], beta: float, loss_type: str) -> DPOConfig:
    """TRL configuration of dpo, with the reference policy's log-probabilities computed once."""
    return _one_device(DPOConfig(**shared, beta=beta, loss_type=loss_type, precompute_ref_log_probs=True))


def _one_device(config: Any) -> Any:
    """One device per process: the Trainer would else wrap the model in DataParallel where it sees several GPUs."""
    if config.n_gpu > 1:  # reading it sets the devices up
        config._n_gpu = 1
    return config


def whole_batches(order: Sequence[int], batch_size: int, rows: int) -> list[int]:
    """The order with its last batch filled up by rows without loss, so that several processes get equally many batches.

    The filler is the entry after the `rows` real ones.
    """
    missing = -len(order) % batch_size if world_size() > 1 else 0
    return [*order, *[rows] * missing]


def row_numbers(numbers: Iterable[int]) -> Dataset:
    """A data set of row numbers; the collator holds the rows themselves."""
    return Dataset.from_dict({"row": list(numbers)})


def full_weights(trainer: Any) -> dict[str, torch.Tensor] | None:
    """The weights gathered in the main process where they are sharded, else None; every process must call this."""
    state: dict[str, torch.Tensor] | None = trainer.accelerator.get_state_dict(trainer.model) if trainer.args.fsdp else None
    return state


def run(trainer: Any, callback: WorkCallback, folder: Path) -> dict[str, float]:
    """Train from the newest whole checkpoint in `folder`, or from the start. Returns the final metrics.

    Raises Stopped on SIGTERM, MemoryShort when a step does not fit.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(callback)
    resume = checkpoints.newest(folder)
    if resume:
        print(f"resuming from {resume.name}", flush=True)
    if trainer.args.fsdp and not trainer.is_fsdp_enabled:
        raise ParallelError("training.fsdp = true: accelerate shards on GPUs only, and this process has none: set it to false")
    try:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    except torch.OutOfMemoryError as error:
        rows = trainer.args.per_device_train_batch_size
        raise MemoryShort(
            f"out of memory with {rows} rows per forward pass and device: halve training.batch_size and double "
            "training.gradient_accumulation_steps (the effective batch stays), or set training.gradient_checkpointing: true "
            f"({str(error).splitlines()[0]})"
        ) from error
    if callback.signal is not None:
        raise Stopped(callback.signal)
    return {k: v for entry in trainer.state.log_history for k, v in entry.items() if k in SHOWN and k != "learning_rate"}
