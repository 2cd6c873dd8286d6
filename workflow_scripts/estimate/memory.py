"""Accelerator memory and time that the stages of an experiment need, before anything runs.

    python -m workflow_scripts.estimate.memory EXPERIMENT... [--configfile FILE...] [--gpu-gb 48 80]

Prints, per stage, where the gigabytes (10^9 bytes) go and how many GPUs of the given sizes it takes. Starts nothing and needs
no GPU; models are known by the published OLMo 2 names, as random models, or by a local config.json. What is counted:

    training      weights, gradients and optimizer states in float32 (P x 4, x 4, x OPTIMIZER_BYTES; divided by the processes
                  under FSDP, which first loads the weights whole), bfloat16 copies of the weights that autocast keeps, the
                  residual stream saved per layer for the backward pass, one layer's inner activations (all layers' without
                  gradient checkpointing), and the loss
    inference     weights in the compute type, key-value cache at full length for generation, one layer's activations, logits
    loss          rows of a chunk x V in the compute type and twice in float32, and for the fused loss V x D of weight gradient
    runtime       CUDA context and workspaces (RUNTIME_GB), and SLACK of what comes and goes for the allocator's waste

Inner activations per token and layer are 8 F + 48 D bytes in training under bfloat16 autocast (a test counts what a layer of
transformers saves; attention is fused, so nothing grows with the square of the length) and 6 F + 12 D bytes in inference. They
are bounds for full batches of the longest rows. In inference a batch that does not fit is halved, and said, and a model that
does not fit is spread over the GPUs of the job.

Hours are of one GPU (of all processes in training) that sustains SUSTAINED_FLOPS, an A100 or L40S at about a third of its
peak, and reads BANDWIDTH: forward passes 2 P FLOPs a token, training 6 P and 2 P more with checkpointing, over full rows and
INPUT_PER_LOSS input tokens per loss token; generation reads weights and half of the final cache once per token. `make forecast`
prices a run on your own hardware from past records.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workflow_scripts.settings import Settings, SettingsError, load_experiments
from workflow_scripts.settings.load import deep_merge, read_yaml
from workflow_scripts.settings.models import FolderModel, HubModel, PackagedModel, PrunedModel, RandomModel
from workflow_scripts.settings.shapes import Shape, published_shape

ROOT = Path(__file__).parents[2]
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw_8bit": 2.1, "adafactor": 0.1}  # per parameter, with scales; adafactor: rows and columns
FUSED_CHUNK, SCORING_CHUNK = 512, 256
RUNTIME_GB, SLACK = 1.5, 0.1
GB = 1e9
LASTING = ("weights", "gradients", "optimizer")
SUSTAINED_FLOPS, BANDWIDTH = 1e14, 8e11  # of one GPU: FLOP/s, B/s
INPUT_PER_LOSS = 2.5


class UnknownShapeError(ValueError):
    """A model whose shape cannot be known before it is prepared."""


@dataclass
class Need:
    """One stage: bytes by component, of each process of a training, in all for inference (`processes` None), and seconds."""

    stage: str
    processes: int | None
    parts: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def gigabytes(self) -> float:
        """All components with the runtime's own, 10^9 bytes."""
        passing = SLACK * sum(size for name, size in self.parts.items() if name not in LASTING)
        return RUNTIME_GB + (sum(self.parts.values()) + passing) / GB

    def gpus(self, size: float) -> int | None:
        """GPUs of `size` x 10^9 bytes that it takes; None for a training whose processes do not fit."""
        if self.gigabytes() <= size:
            return self.processes or 1
        spare = size - RUNTIME_GB - SLACK * size
        return None if self.processes else max(2, math.ceil((self.gigabytes() - RUNTIME_GB) / spare))


def stages(settings: Settings) -> list[Need]:
    """What each stage of an experiment needs, in the order of the pipeline. Raises UnknownShapeError naming the model."""
    teacher, student = (shape_of(getattr(settings.model, role), settings) for role in ("teacher", "student"))
    return [*_teacher_stage(settings, teacher), _training(settings, student), _evaluation(settings, student, teacher)]


def _teacher_stage(settings: Settings, teacher: Shape) -> Iterable[Need]:
    length = settings.data.max_sequence_length
    weights = {"weights": _inference_bytes(settings) * teacher.parameters()}
    if settings.pipeline == "kd":
        rows = settings.distillation.batch_size
        passed = {"activations": _passing(teacher, rows * length), "logits": _chunk(teacher, FUSED_CHUNK)}
        flops = 2.0 * teacher.parameters() * settings.data.train_examples * length
        yield Need("logit_caching", None, weights | passed, flops / SUSTAINED_FLOPS)
    elif settings.pipeline in ("sft", "dpo"):
        generation = settings.synthetic_data.generation if settings.pipeline == "sft" else settings.dpo.generation
        stage = "synthetic_generation" if settings.pipeline == "sft" else "preference_dataset"
        rows, longest = generation.batch_size, length + generation.max_new_tokens
        passed = {
            "key-value cache": key_value_bytes(teacher, rows * longest),
            "activations": _passing(teacher, rows * length),
            "logits": 4.0 * 4 * rows * teacher.vocab_size,
        }
        dpo = settings.dpo
        answers = settings.synthetic_data.max_gen_examples
        if settings.pipeline == "dpo":
            answers = dpo.samples_per_prompt * (dpo.train_prompts + dpo.evaluation_prompts)
        read = weights["weights"] + key_value_bytes(teacher, rows * longest) / 2
        seconds = math.ceil(answers / rows) * generation.max_new_tokens * read / BANDWIDTH
        passes = 2 if settings.pipeline == "dpo" else 1  # prompts, and the judge's pass over prompt and answer
        seconds += passes * 2.0 * teacher.parameters() * answers * length / SUSTAINED_FLOPS
        yield Need(stage, None, weights | passed, seconds)


def _training(settings: Settings, student: Shape) -> Need:
    training = settings.training
    processes = training.num_processes * training.num_nodes
    shards = processes if training.fsdp else 1
    rows = training.batch_size // processes * (2 if settings.pipeline == "dpo" else 1)
    tokens, parameters = rows * settings.data.max_sequence_length, student.parameters()
    layers = 1 if training.gradient_checkpointing else student.num_hidden_layers
    copied = parameters if shards == 1 else 2 * student.layer_parameters() + 2 * student.vocab_size * student.hidden_size
    half = training.dtype != "float32"
    parts = {
        "weights": 4 * parameters / shards,
        "gradients": 4 * parameters / shards,
        "optimizer": OPTIMIZER_BYTES[training.optimizer] * parameters / shards,
        "bfloat16 copies": 2.0 * copied if half else 0.0,
        "residual stream": 4.0 * tokens * student.hidden_size * student.num_hidden_layers,
        "activations": layers * _one_layer(student, tokens) * (1 if half else 2),
        "loss": _chunk(student, FUSED_CHUNK) + 4.0 * student.vocab_size * student.hidden_size,
    }
    loading = {"weights": 4.0 * parameters, "own shard": 4 * parameters / shards}
    if shards > 1 and sum(loading.values()) > sum(parts.values()):
        parts = loading
    passes = (6 + 2 * training.gradient_checkpointing + 2 * (settings.pipeline == "dpo")) * parameters
    seconds = passes * training.token_budget * INPUT_PER_LOSS / SUSTAINED_FLOPS / processes
    return Need("dpo_training" if settings.pipeline == "dpo" else "student_train", processes, parts, seconds)


def _evaluation(settings: Settings, student: Shape, teacher: Shape) -> Need:
    options, size = settings.evaluation, _inference_bytes(settings)
    models = [student, teacher, *([student] if settings.pipeline == "dpo" else [])]
    rows = options.batch_size * settings.data.max_sequence_length
    answers = options.generation_prompts * (settings.data.max_sequence_length + options.max_new_tokens)
    parts = {
        "weights": size * sum(shape.parameters() for shape in models),
        "key-value cache": key_value_bytes(student, answers),
        "activations": _passing(max(models, key=lambda shape: shape.hidden_size), rows),
        "logits": 2.0 * _chunk(teacher, SCORING_CHUNK),
    }
    held_out = settings.data.evaluation_examples * settings.data.max_sequence_length
    flops = 2.0 * held_out * (student.parameters() + teacher.parameters())
    steps = options.max_new_tokens * size * student.parameters() / BANDWIDTH
    return Need("evaluation", None, parts, flops / SUSTAINED_FLOPS + steps)


def key_value_bytes(shape: Shape, tokens: int) -> float:
    """Keys and values of all layers in bfloat16."""
    return 2.0 * 2 * shape.num_hidden_layers * shape.key_value_size * tokens


def _one_layer(shape: Shape, tokens: int) -> float:
    return float(tokens * (8 * shape.intermediate_size + 48 * shape.hidden_size))


def _passing(shape: Shape, tokens: int) -> float:
    return float(tokens * (6 * shape.intermediate_size + 12 * shape.hidden_size))


def _chunk(shape: Shape, rows: int) -> float:
    return float(rows * shape.vocab_size * (2 + 4 + 4))


def _inference_bytes(settings: Settings) -> int:
    return 4 if settings.training.dtype == "float32" else 2


def shape_of(name: str, settings: Settings) -> Shape:
    """Shape of a model by its name in the settings, hub id or folder. Raises UnknownShapeError when nothing tells."""
    source = settings.models.get(name)
    if isinstance(source, RandomModel):
        return source.shape()
    if isinstance(source, PrunedModel | PackagedModel):
        raise UnknownShapeError(f"the shape of models.{name} is not known before it is prepared")
    named = {FolderModel: "path", HubModel: "repo_id"}.get(type(source))  # type: ignore[arg-type]
    where = getattr(source, named) if named else name
    known = published_shape(where)
    config = Path(where).expanduser() / "config.json"
    if known is None and config.is_file():
        values = read_yaml(config)  # JSON is YAML
        sizes = {key: values[key] for key in Shape.__dataclass_fields__ if key in values}
        return Shape(**{"num_key_value_heads": values["num_attention_heads"]} | sizes)
    if known is None:
        raise UnknownShapeError(f"the shape of {where} is not known: name a local folder that holds its config.json")
    return known


def table(name: str, needs: Sequence[Need], gpus: Sequence[float]) -> list[str]:
    """Lines of one experiment."""
    head = ["stage", "GB", *(f"GPUs of {size:g} GB" for size in gpus), "hours", "of which"]
    rows = [head]
    for need in needs:
        largest = sorted(need.parts.items(), key=lambda part: -part[1])
        shown = ", ".join(f"{what} {size / GB:.1f}" for what, size in largest if size >= 0.05 * GB)
        counts = [str(need.gpus(size) or "-") for size in gpus]
        each = f" x {need.processes}" if need.processes and need.processes > 1 else ""
        rows.append([need.stage, f"{need.gigabytes():.1f}{each}", *counts, f"{need.seconds / 3600:.1f}", shown])
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return [
        name,
        *("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 1 when the configuration cannot be used."""
    parser = argparse.ArgumentParser(prog="workflow_scripts.estimate.memory", allow_abbrev=False)
    parser.add_argument("experiments", nargs="+")
    parser.add_argument("--configfile", nargs="+", default=[], type=Path)
    parser.add_argument("--gpu-gb", nargs="+", default=[48.0, 80.0], type=float)
    options = parser.parse_args(arguments)
    try:
        overrides: dict[str, object] = {}
        for file in options.configfile:
            overrides = deep_merge(overrides, read_yaml(file))
        known = load_experiments(ROOT / "config", read_yaml(ROOT / "config" / "base.yaml"), overrides)
        for name in options.experiments:
            if name not in known:
                raise SettingsError(known.set_aside.get(name, f"{name!r} is no experiment (known: {', '.join(known)})"))
            print("\n".join(table(name, stages(known[name]), options.gpu_gb)))
    except (SettingsError, UnknownShapeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
