"""Trainings of kd, sft and baseline on the Hugging Face Trainer, with one fused loss; what trainings share."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import types
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer

from workflow_scripts.distill import adapters, checkpoints
from workflow_scripts.distill.batching import pad_rows
from workflow_scripts.distill.corpus import loss_tokens
from workflow_scripts.distill.logit_cache import LogitCache
from workflow_scripts.distill.losses import KdLoss, SparseTeacher, fused_distillation_loss
from workflow_scripts.distill.packing import pack_rows
from workflow_scripts.distill.parallel import highest, is_main, sum_over_processes, world_size
from workflow_scripts.distill.work import SHOWN, NotFinite, StepWork, WorkCallback
from workflow_scripts.errors import UserError
from workflow_scripts.progress import Progress, attempt_seconds
from workflow_scripts.settings.schema import Training

IGNORE = -100
FILLER = -1  # number of a row without loss
UNEVEN = 0.1  # from here on a step's mean loss tokens are said to be others than `training.batch_tokens`


class ParallelError(UserError):
    """Several processes were asked for in a way that does not work here."""


class MemoryShort(UserError):
    """The accelerator has no room for a step."""


class Stopped(UserError):
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


class OrderedSampling:
    """Trainer mix-in: the order is the one given, evaluations keep their time, phases are marked, a loss of NaN is the end.

    The log entry of an evaluation, which a checkpoint keeps, has `evaluation`: step, held-out loss, start and end [unix s], and
    the attempt with its seconds until start and end, by which the accounting finds its joules in that attempt's power trace.
    """

    order: Sequence[int]
    state: Any
    accelerator: Any
    progress: Progress | None = None

    def create_accelerator_and_postprocess(self) -> None:
        """The Trainer's, but that a sharded model takes and gives numbers as they are: log-sums and losses stay float32."""
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None and plugin.mixed_precision_policy is not None:
            kept = dataclasses.replace(plugin.mixed_precision_policy, cast_forward_inputs=False, output_dtype=None)
            plugin.mixed_precision_policy = kept

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return _FixedOrder(self.order)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The Trainer's forward and backward pass of a batch. Raises NotFinite when its loss is no finite number."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if not torch.isfinite(loss).all():
            raise NotFinite("loss", self.state.global_step + 1)
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The Trainer's evaluation, timed."""
        began, start_s = time.time(), attempt_seconds()
        with self._phase("evaluate"):
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)  # type: ignore[misc]
        self.state.log_history[-1]["evaluation"] = {
            "step": self.state.global_step,
            "eval_loss": metrics["eval_loss"],
            "start_time": began,
            "end_time": time.time(),
            "attempt": os.environ.get("METER_ATTEMPT"),
            "start_s": start_s,
            "end_s": attempt_seconds(),
        }
        return metrics

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self._phase("save"):
            super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        before = self.progress.phase(name) if self.progress is not None else None
        yield
        if self.progress is not None and before is not None:
            self.progress.phase(before)


def _distillation_forward(
    model: Any,
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    kd: KdLoss | None = None,
    teacher_ids: torch.Tensor | None = None,
    teacher_logits: torch.Tensor | None = None,
    teacher_rest: torch.Tensor | None = None,
    teacher_entropy: torch.Tensor | None = None,
    **layout: Any,
) -> dict[str, torch.Tensor]:
    """Loss sums of a batch, as the model's own forward, so that autocast and distributed wrappers stay in place.

    `layout` tells the rows apart: `attention_mask` of a padded batch, `position_ids` and `row_lengths` of a packed one.
    """
    hidden = model.model(input_ids=input_ids, use_cache=False, **layout).last_hidden_state
    targets = labels.roll(-1, dims=1)
    predicts = targets != IGNORE
    teacher = None
    if kd is not None and teacher_ids is not None and teacher_logits is not None and teacher_rest is not None:
        teacher = SparseTeacher(teacher_ids, teacher_logits, teacher_rest, teacher_entropy)
    terms = fused_distillation_loss(
        hidden[predicts],
        model.lm_head.weight,
        targets[predicts],
        teacher,
        kd or KdLoss(),
        vocabulary=getattr(model, "vocabulary", None),
    )
    return {"loss": terms.total, "cross_entropy": terms.cross_entropy, "kl": terms.kl}


class DistillationTrainer(OrderedSampling, Trainer):
    """SFT and KD with one fused loss, averaged over the loss tokens of the whole optimizer step."""

    def __init__(self, *args: Any, order: Sequence[int], kd: KdLoss | None, **kwargs: Any) -> None:
        self.order = order
        super().__init__(*args, **kwargs)
        self._kd = kd
        self._metrics: dict[str, dict[str, list[float]]] = {mode: defaultdict(list) for mode in ("train", "eval")}
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
        if mode == "eval":
            self._held_out += totals[[0, 2]].double()
        names = ("cross_entropy", "kl") if inputs.get("teacher_ids") is not None else ("cross_entropy",)
        for name, total in zip(names, totals[: len(names)], strict=True):
            self._metrics[mode][name].append((total / totals[2]).item())
        return (loss, sums) if return_outputs else loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, with the held-out loss averaged over loss tokens; its own is the mean of the batches' means."""
        self._held_out = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        output = super().evaluation_loop(*args, **kwargs)
        cross_entropy, tokens = self._held_out.tolist()
        output.metrics["eval_loss"] = cross_entropy / tokens
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's log line, with the mean of each metric since the last one (named `eval_…` in an evaluation)."""
        mode, prefix = ("train", "") if self.model.training else ("eval", "eval_")
        means = {f"{prefix}{name}": sum(values) / len(values) for name, values in self._metrics[mode].items()}
        super().log(logs | means, start_time)
        self._metrics[mode].clear()


class Collator:
    """Batches of tokenised rows, with the teacher's logits fetched by example id when a cache is given.

    Gives `input_ids`, `attention_mask`, `labels` [B, L], with `packing` all rows as one ([1, S], with `position_ids` and
    `row_lengths` instead of the mask), and for KD `teacher_ids`, `teacher_logits` [N, k], `teacher_rest` [N] and, of random
    draws, `teacher_entropy` [N]; N the loss tokens of the batch in row order. Rows are numbered through both splits;
    evaluation rows have no teacher, their loss is cross entropy.
    """

    def __init__(
        self,
        train: Sequence[dict[str, Any]],
        evaluation: Sequence[dict[str, Any]],
        pad_id: int,
        cache: LogitCache | None = None,
        temperature: float = 1.0,
        packing: bool = False,
    ) -> None:
        self._packing = packing
        self._rows, self._train = [*train, *evaluation], len(train)
        self._pad_id, self._cache, self._temperature = pad_id, cache, temperature

    def __call__(self, examples: Sequence[dict[str, int]]) -> dict[str, Any]:
        """Collate examples of `row_numbers`."""
        numbers = [example["row"] for example in examples]
        filler: dict[str, Any] = {"input_ids": [self._pad_id], "loss_mask": [0]}  # a row without loss
        rows = [self._rows[number] if number != FILLER else filler for number in numbers]
        tensors: dict[str, Any]
        if self._packing:
            batch, positions, lengths = pack_rows(rows)
            tensors = {"position_ids": positions, "row_lengths": lengths}
        else:
            batch = pad_rows(rows, self._pad_id)
            tensors = {"attention_mask": batch.attention_mask}
        labels = torch.full_like(batch.input_ids, IGNORE)
        labels[:, 1:] = torch.where(batch.predicts[:, :-1], batch.input_ids[:, 1:], IGNORE)
        tensors |= {"input_ids": batch.input_ids, "labels": labels}
        if self._cache is not None and numbers[0] < self._train:
            real = [row for row, number in zip(rows, numbers, strict=True) if number != FILLER]
            found = [self._cache.teacher(r["example_id"], self._temperature, loss_tokens(r)) for r in real]
            found = found or [self._cache.nothing()]
            tensors["teacher_ids"] = torch.cat([t.ids for t in found])
            tensors["teacher_logits"] = torch.cat([t.logits for t in found])
            tensors["teacher_rest"] = torch.cat([t.rest for t in found])
            if entropies := [t.entropy for t in found if t.entropy is not None]:
                tensors["teacher_entropy"] = torch.cat(entropies)
        return tensors


def compile_layers(model: Any, cache: Path) -> None:
    """Compile the decoder layers, each alone and for any length: the first compiled one serves for all of them.

    Compiled code goes to `cache`, not to the machine's common one, which would give it to a rerun for free.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache.absolute())
    for layer in model.model.layers:
        layer.compile(dynamic=True)


def ended_by(training: Training, loss_tokens: int) -> str:
    """The key of `training` that ends a training planned for so many loss tokens."""
    return "token_budget" if loss_tokens >= training.token_budget else "max_epochs"


def uneven_steps(training: Training, steps: Sequence[StepWork]) -> list[str]:
    """A warning where whole rows do not come near to `batch_tokens`; the last step may be a short one."""
    whole = steps[:-1] or steps
    mean = sum(step.loss for step in whole) / len(whole)
    if training.batch_tokens is None or abs(mean / training.batch_tokens - 1) <= UNEVEN:
        return []
    rows = training.batch_size * training.gradient_accumulation_steps
    return [
        f"training.batch_tokens = {training.batch_tokens}, but steps of {rows} row(s) have {mean:.0f} loss tokens on average"
    ]


def whole_batches(order: Sequence[int], batch_size: int, filler: int) -> list[int]:
    """The order with its last batch filled up by the row without loss, so that several processes get equally many batches.

    `filler` is that row's entry: FILLER in a list of row numbers, the entry after the real ones in an order of a training.
    """
    missing = -len(order) % batch_size if world_size() > 1 else 0
    return [*order, *[filler] * missing]


def row_numbers(numbers: Iterable[int]) -> list[dict[str, int]]:
    """A data set of row numbers; the collator holds the rows themselves."""
    return [{"row": number} for number in numbers]


def full_weights(trainer: Any) -> dict[str, torch.Tensor] | None:
    """The weights gathered in the main process where they are sharded, else None; every process must call this."""
    state: dict[str, torch.Tensor] | None = trainer.accelerator.get_state_dict(trainer.model) if trainer.args.fsdp else None
    return state


def write_model(trainer: Any, build: Path, weights: dict[str, torch.Tensor] | None, base: str) -> None:
    """Write the trained model; adapters of the model `base` are merged, and stand beside it by themselves."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "peft_config"):
        adapters.merge_adapters(model, build / adapters.FOLDER, base)
    model.save_pretrained(build, state_dict=weights)


def resume_point(folder: Path, device: torch.device) -> Path | None:
    """The checkpoint to go on from, or None: the main process looks, and all take what it found."""
    found = checkpoints.newest(folder) if is_main() else None
    step = highest(checkpoints.step(found) if found else 0, device)
    if not step:
        return None
    if is_main():
        print(f"resuming from checkpoint-{step}", flush=True)
    return folder / f"checkpoint-{step}"


def run(trainer: Any, callback: WorkCallback, folder: Path) -> dict[str, Any]:
    """Train from the newest whole checkpoint in `folder`, or from the start.

    Returns the final metrics, with what ended the training in `ended_by` and the intermediate evaluations in `evaluations`.
    Raises Stopped on SIGTERM before the last step, MemoryShort when a step does not fit, EnergyUnknown when an energy budget
    cannot be kept, and NotFinite.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(callback)
    trainer.progress = callback.progress
    resume = resume_point(folder, trainer.args.device)
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
    if callback.signal is not None and trainer.state.global_step < trainer.state.max_steps:  # else the model is written
        raise Stopped(callback.signal)
    if callback.unknown is not None:
        raise callback.unknown
    history = trainer.state.log_history
    last = {k: v for entry in history for k, v in entry.items() if k in SHOWN and k != "learning_rate"}
    evaluations = [entry["evaluation"] for entry in history if "evaluation" in entry]
    return last | {"ended_by": callback.ended_by} | ({"evaluations": evaluations} if evaluations else {})
