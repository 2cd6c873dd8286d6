"""Accelerator memory and time that the stages of an experiment need, before anything runs.

    python -m workflow_scripts.estimate.memory EXPERIMENT... [--configfile FILE...] [--gpu-gb 48 80]

Prints, per stage, where the gigabytes (10^9 bytes) go, how many GPUs of the given sizes it takes, hours, kWh, and what it
leaves on disk. Starts nothing and needs no GPU; models are known by the published OLMo 2 names, as random models, or by a local
config.json. What is counted:

    training      weights, gradients and optimizer states in float32 (P x 4, x 4, x OPTIMIZER_BYTES; divided by the processes
                  under FSDP, which first loads the weights whole), bfloat16 copies of the weights that autocast keeps, the
                  residual stream saved per layer for the backward pass, one layer's inner activations (all layers' without
                  gradient checkpointing), and the loss; with adapters (training.lora) gradients and optimizer states are
                  theirs alone, and the loss has no gradient of the head
    inference     weights in the compute type, key-value cache at full length for generation, one layer's activations, logits
    loss          rows of a chunk x V in the compute type and twice in float32, and for the fused loss V x D of weight gradient
    runtime       CUDA context and workspaces (RUNTIME_GB), and SLACK of what comes and goes for the allocator's waste

Inner activations per token and layer are 8 F + 48 D bytes in training under bfloat16 autocast (a test counts what a layer of
transformers saves; attention is fused, so nothing grows with the square of the length) and 6 F + 12 D bytes in inference. They
are bounds for full batches of the longest rows. In inference a batch that does not fit is halved, and said, and a model that
does not fit is spread over the GPUs of the job.

Hours are of one GPU (of all processes in training) that sustains SUSTAINED_FLOPS, an A100 or L40S at about a third of its
peak, and reads BANDWIDTH. The work is the forecast's (see `work` beside this) over full rows; generation reads weights and half
of the final cache once per token. kWh are those hours at GPU_WATTS a GPU, the board power of an L40S, without the rest of the
host. On disk lie the model in float32 and its last two checkpoints (`training.keep_checkpoints`), or the logit cache: 16 bits a
logit, 17 (of a vocabulary over 2^17: 24) a token id. `make forecast` prices a run on your own hardware from past records.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tabulate import tabulate

from workflow_scripts.estimate.artefacts import Artefacts, Split, known_shape, local_folder
from workflow_scripts.estimate.pricing import Range, UnpricedError
from workflow_scripts.estimate.work import TRAINED, WORK, Task, Work, amount
from workflow_scripts.pipelines import PIPELINES, STAGES, scored_rows
from workflow_scripts.settings import Settings, SettingsError, load_experiments
from workflow_scripts.settings.load import deep_merge, read_yaml
from workflow_scripts.settings.models import FolderModel
from workflow_scripts.settings.shapes import Shape

ROOT = Path(__file__).parents[2]
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw_8bit": 2.1, "adafactor": 0.1}  # per parameter, with scales; adafactor: rows and columns
CHUNK = 512  # rows of logits at once in the fused loss; scoring holds half of them twice
RUNTIME_GB, SLACK = 1.5, 0.1
GB = 1e9
LASTING = ("weights", "gradients", "optimizer")
SUSTAINED_FLOPS, BANDWIDTH = 1e14, 8e11  # of one GPU: FLOP/s, B/s
GPU_WATTS = 350.0
CHECKPOINTS = 2


@dataclass
class Need:
    """One stage: bytes by component, of each process of a training, in all for inference (`processes` None), and seconds."""

    stage: str
    processes: int | None
    parts: dict[str, float]
    seconds: float
    disk: float

    def kwh(self) -> float:
        """Energy of the GPUs that are busy at once."""
        return self.seconds * GPU_WATTS * (self.processes or 1) / 3.6e6

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


WRITTEN = "rollouts"  # a corpus that the student writes


class Shapes(Artefacts):
    """Sizes before anything is made: models by the names that the settings give them, corpora of full rows."""

    def __init__(self, settings: Settings) -> None:
        super().__init__([], Path())
        self.settings = settings

    def parameters(self, model: str) -> float:
        """Parameters of a model."""
        return float(shape_of(model, self.settings).parameters())

    def split(self, corpus: str, name: str) -> Split:
        """A split of rows that all have data.max_sequence_length tokens, and prompts as long."""
        data = self.settings.data
        train = scored_rows(self.settings) if corpus == WRITTEN else data.train_examples
        rows = float({"train": train, "evaluation": data.evaluation_examples}[name])
        tokens = Range.exactly(rows * data.max_sequence_length)
        return Split(rows, tokens, tokens, Range.exactly(float(data.max_sequence_length)))

    def epoch(self, inputs: Mapping[str, str]) -> tuple[None, None]:
        """Not known: the token budget decides."""
        return None, None


def stages(settings: Settings) -> list[Need]:
    """What each stage of an experiment needs, in the order of the pipeline. Raises UnpricedError naming a model."""
    pipeline, names = PIPELINES[settings.pipeline], settings.model
    inputs = dict.fromkeys(("student", "policy", "model"), names.student) | {"teacher": names.teacher, "corpus": "corpus"}
    if pipeline.judged_on_pairs:
        inputs |= {"reference": names.student, "preferences": "pairs"}
    if pipeline.teacher and (ask := STAGES[pipeline.teacher].judge) and (judge := ask(settings)):
        inputs["judge"] = judge
    of_all = settings.model_dump()
    planned = [s for s in ("rollout" if pipeline.in_rounds else None, pipeline.teacher, pipeline.training, "evaluation") if s]
    written = inputs | ({"corpus": WRITTEN} if pipeline.in_rounds else {})
    found = [need(Task(s, of_all, written if s == pipeline.teacher else inputs, Shapes(settings)), settings) for s in planned]
    rounds = (
        settings.opd.rounds if pipeline.in_rounds else 1
    )  # each has its texts, scores and model; they share the token budget
    of_each = {n.stage: (n.disk * rounds, n.seconds * (1 if n.stage == pipeline.training else rounds)) for n in found[:-1]}
    return [replace(n, disk=of_each[n.stage][0], seconds=of_each[n.stage][1]) if n.stage in of_each else n for n in found]


def need(task: Task, settings: Settings) -> Need:
    """Memory and time of one stage from its work."""
    work, passes = WORK[task.stage].expect(task), WORK[task.stage].passes
    seconds = amount(task, work).mid / SUSTAINED_FLOPS
    if passes[0].per_input >= TRAINED:
        training = settings.training
        processes = training.num_processes * training.num_nodes
        shape = shape_of(task.input(passes[0].role), settings)
        parts = _training_parts(shape, work.rows // processes, settings)
        return Need(task.stage, processes, parts, seconds / processes, _model_bytes(shape, settings))
    parts = _inference_parts(task, work, settings)
    read = _inference_bytes(task, settings) * task.parameters(passes[0].role) + parts.get("key-value cache", 0.0) / 2
    steps = math.ceil(work.examples / work.at_once) * work.new if work.new else 0
    disk = work.loss.mid * _position_bytes(task, settings) if STAGES[task.stage].folder == "logit_cache" else 0.0
    return Need(task.stage, None, parts, seconds + steps * read / BANDWIDTH, disk)


def _model_bytes(student: Shape, settings: Settings) -> float:
    """A trained model in float32, and its checkpoints with gradients' moments where they are kept."""
    training, whole, own = settings.training, student.parameters(), _adapters(student, settings)
    kept = 4.0 * (whole + own) + OPTIMIZER_BYTES[training.optimizer] * (own or whole)
    return 4.0 * (whole + own) + (CHECKPOINTS * kept if training.keep_checkpoints else 0.0)


def _adapters(student: Shape, settings: Settings) -> int:
    """Parameters of a student's adapters, 0 without."""
    lora = settings.training.lora
    return student.adapter_parameters(lora.rank, lora.target_modules) if lora else 0


def _position_bytes(task: Task, settings: Settings) -> float:
    """Bytes of one position of a logit cache."""
    options = settings.distillation
    if options.sampling == "random":
        return 40.0 * len(options.cache_temperatures)  # at 50 draws: about 12 ids with their counts
    id_bits = 17 if shape_of(task.input("teacher"), settings).vocab_size <= 1 << 17 else 24
    return options.top_k_logits * (16 + id_bits) / 8 + 4.0 * len(options.cache_temperatures)


def _inference_parts(task: Task, work: Work, settings: Settings) -> dict[str, float]:
    passes = WORK[task.stage].passes
    roles = (*(p.role for p in passes), *WORK[task.stage].holds)
    shapes = {role: shape_of(task.inputs[role], settings) for role in roles if role in task.inputs}
    length = settings.data.max_sequence_length
    widest = max(shapes.values(), key=lambda shape: shape.hidden_size)
    scores = any(not p.per_generated for p in passes)
    cache = key_value_bytes(shapes[passes[0].role], work.at_once * (length + work.new)) if work.new else 0.0
    return {
        "weights": float(_inference_bytes(task, settings) * sum(shape.parameters() for shape in shapes.values())),
        **({"key-value cache": cache} if cache else {}),
        "activations": float(work.rows * length * (6 * widest.intermediate_size + 12 * widest.hidden_size)),
        "logits": max(_chunk(widest) if scores else 0.0, 4.0 * 4 * work.at_once * widest.vocab_size),
    }


def _training_parts(student: Shape, rows: int, settings: Settings) -> dict[str, float]:
    training = settings.training
    shards = training.num_processes * training.num_nodes if training.fsdp else 1
    tokens, parameters = rows * settings.data.max_sequence_length, student.parameters()
    layers = 1 if training.gradient_checkpointing else student.num_hidden_layers
    copied = parameters if shards == 1 else 2 * student.layer_parameters() + 2 * student.vocab_size * student.hidden_size
    half, own = training.dtype != "float32", _adapters(student, settings)
    trained = own or parameters
    parts = {
        "weights": 4 * (parameters + own) / shards,
        "gradients": 4 * trained / shards,
        "optimizer": OPTIMIZER_BYTES[training.optimizer] * trained / shards,
        "bfloat16 copies": 2.0 * copied if half else 0.0,
        "residual stream": 4.0 * tokens * student.hidden_size * student.num_hidden_layers,
        "activations": layers * _one_layer(student, tokens) * (1 if half else 2),
        "loss": _chunk(student) + (0.0 if own else 4.0 * student.vocab_size * student.hidden_size),
    }
    loading = {"weights": 4.0 * parameters, "own shard": 4 * parameters / shards}
    return loading if shards > 1 and sum(loading.values()) > sum(parts.values()) else parts


def key_value_bytes(shape: Shape, tokens: int) -> float:
    """Keys and values of all layers in bfloat16."""
    return 2.0 * 2 * shape.num_hidden_layers * shape.key_value_size * tokens


def _one_layer(shape: Shape, tokens: int) -> float:
    return float(tokens * (8 * shape.intermediate_size + 48 * shape.hidden_size))


def _chunk(shape: Shape) -> float:
    return float(CHUNK * shape.vocab_size * (2 + 4 + 4))


def _inference_bytes(task: Task, settings: Settings) -> int:
    dtype = settings.teacher.dtype if STAGES[task.stage].role == "teacher" else settings.training.dtype
    return 4 if dtype == "float32" else 2


def shape_of(name: str, settings: Settings) -> Shape:
    """Shape of a model by its name in the settings, hub id or folder. Raises UnpricedError when nothing tells."""
    source = settings.models.get(name) or FolderModel(source="folder", path=name)
    shape, folder = known_shape(source), local_folder(source)
    if shape is not None:
        return shape
    if folder is None and name in settings.models:
        raise UnpricedError(f"the shape of models.{name} is not known before it is prepared")
    if folder is None:
        raise UnpricedError(f"the shape of {name} is not known: name a local folder that holds its config.json")
    values = read_yaml(folder / "config.json")  # JSON is YAML
    sizes = {key: values[key] for key in Shape.__dataclass_fields__ if values.get(key) is not None}
    try:
        return Shape(**{"num_key_value_heads": values["num_attention_heads"]} | sizes)
    except (KeyError, TypeError) as error:
        raise UnpricedError(f"{folder}/config.json is not that of a plain decoder: {error}") from None


def table(name: str, needs: Sequence[Need], gpus: Sequence[float]) -> str:
    """The lines of one experiment."""
    rows = []
    for each in needs:
        largest = sorted(each.parts.items(), key=lambda part: -part[1])
        shown = ", ".join(f"{what} {size / GB:.1f}" for what, size in largest if size >= 0.05 * GB)
        of = f" x {each.processes}" if each.processes and each.processes > 1 else ""
        counts = [str(each.gpus(size) or "-") for size in gpus]
        figures = [f"{each.seconds / 3600:.1f}", f"{each.kwh():.2g}", f"{each.disk / GB:.1f}" if each.disk else "-"]
        rows.append([each.stage, f"{each.gigabytes():.1f}{of}", *counts, *figures, shown])
    head = ["stage", "GB", *(f"GPUs of {size:g} GB" for size in gpus), "hours", "kWh", "disk GB", "of which"]
    return f"{name}\n{tabulate(rows, head, tablefmt='plain', disable_numparse=True)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 1 when the configuration cannot be used."""
    parser = argparse.ArgumentParser(prog="workflow_scripts.estimate.memory", allow_abbrev=False)
    parser.add_argument("experiments", nargs="+")
    parser.add_argument("--configfile", nargs="+", default=[], type=Path)
    parser.add_argument("--gpu-gb", nargs="+", default=[24.0, 48.0, 80.0], type=float)
    options = parser.parse_args(arguments)
    try:
        overrides: dict[str, object] = {}
        for file in options.configfile:
            overrides = deep_merge(overrides, read_yaml(file))
        known = load_experiments(ROOT / "config", read_yaml(ROOT / "config" / "base.yaml"), overrides)
        for name in options.experiments:
            runs = [run for run in known.runs.get(name, [name]) if run in known]
            if not runs:
                raise SettingsError(known.set_aside.get(name, f"{name!r} is no experiment (known: {', '.join(known)})"))
            for method, run in {known.methods[run]: run for run in runs}.items():  # seeds need the same
                print(table(method, stages(known[run]), options.gpu_gb))
    except (SettingsError, UnpricedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
