"""Models and tokenizers: make, open, identify."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")  # bars are no plain lines in a log file

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from workflow_scripts.artefact import open_artefact, sha256
from workflow_scripts.distill.parallel import world_size
from workflow_scripts.errors import UserError

transformers.utils.logging.disable_progress_bar()

_NO_MASS = -1.0e4  # added to a logit: its probability is 0 in float32, yet no inf that could turn into nan
TOKENIZER_FILES = ["*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]


class ModelError(UserError):
    """A model that cannot be used as configured."""


def device() -> torch.device:
    """The accelerator of this process, or the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


def compute_dtype(choice: str, *, training: bool = True) -> torch.dtype:
    """Resolve `training.dtype` or, without `training`, `teacher.dtype`: auto is bfloat16 where that is faster, else float32.

    That is on CUDA and with AMX; avx512_bf16 multiplies it, too, but speeds up inference only.
    """
    if choice != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[choice]
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    multiplies = torch.cpu._is_amx_tile_supported() or (not training and torch.cpu._is_avx512_bf16_supported())
    return torch.bfloat16 if multiplies else torch.float32


def load_model(folder: Path, dtype: torch.dtype, attn_implementation: str = "sdpa") -> Any:
    """Load a causal language model from a folder, on this process's device, in evaluation mode."""
    with _named_errors(f"model folder {folder}"):
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attn_implementation,
            local_files_only=True,
            device_map=_placement(folder, dtype),
        )
    hide_padding(model, vocabulary_size(load_tokenizer(folder)))
    if model.generation_config is not None:
        make_savable(model.generation_config, folder)
    return model.eval() if hasattr(model, "hf_device_map") else model.to(device()).eval()


def load_frozen(folder: Path, dtype: torch.dtype, attn_implementation: str = "sdpa") -> Any:
    """`load_model` for a model that is not trained: its weights are packed where a CPU computes."""
    return pack(load_model(folder, dtype, attn_implementation))


def pack(model: Any) -> Any:
    """Replace a model's linear layers, in place, by packed ones, on a CPU whose oneDNN computes the model's type."""
    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return model
    if model.dtype != torch.float32 and not (model.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return model
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is torch.nn.Linear:
                setattr(parent, name, PackedLinear(layer))
    return model


class PackedLinear(torch.nn.Module):
    """A linear layer without gradients whose weight lies in memory in the order in which oneDNN multiplies it.

    A plain layer reorders its weight in each call, or uses MKL, which is slower on an AMD EPYC; Intel's CPUs were not measured.
    A weight that is tied stays where it was, too. The operators are those that torch.compile takes for frozen weights.
    """

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self._packed, self.bias = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach()), layer.bias

    @property
    def weight(self) -> torch.Tensor:
        """The plain weight [out_features, in_features], unpacked for the few models that multiply by it themselves."""
        return self._packed.to_dense()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs [..., in_features] to outputs [..., out_features]."""
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return found


def _placement(folder: Path, dtype: torch.dtype) -> str | None:
    """`auto`, over all GPUs of this process, when a model (stored in 16 bits or more) has no room on the first of several."""
    if torch.cuda.device_count() < 2 or world_size() > 1:
        return None
    size = sum(path.stat().st_size for path in [*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    free, _ = torch.cuda.mem_get_info(0)
    return "auto" if size * dtype.itemsize / 2 > 0.8 * free else None


def hide_padding(model: Any, vocabulary: int) -> None:
    """Give the rows of the output embedding beyond the tokenizer's `vocabulary` no probability, wherever the head is used.

    Vocabularies are padded to a round number of rows (100,278 tokens in 100,352 rows), and the logits of the padding are
    whatever initialisation and training left there. A constant bias on them holds for generation, scoring and TRL's DPO,
    which all read `lm_head.bias`; the fused loss reads `model.vocabulary`. The bias is neither trained nor saved.
    """
    head = getattr(model, "lm_head", None)
    model.vocabulary = vocabulary
    if head is None or head.weight.shape[0] <= vocabulary:
        return
    bias = torch.zeros(head.weight.shape[0], dtype=head.weight.dtype, device=head.weight.device)
    bias[vocabulary:] = _NO_MASS
    del head._parameters["bias"]
    head.register_buffer("bias", bias, persistent=False)


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a model folder."""
    with _named_errors(f"tokenizer in {folder}"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not tokenizer.is_fast:
        raise ModelError(f"{folder}: the tokenizer has no tokenizer.json, so that a template's spans are not known: convert it")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise ModelError(
            f"{folder}: the tokenizer has neither a padding nor an end token: set eos_token in tokenizer_config.json"
        )
    return tokenizer


def vocabulary_size(tokenizer: Any) -> int:
    """Ids below this one can be tokens; vocabularies have gaps, so they may be more than there are tokens."""
    return int(max(tokenizer.get_vocab().values())) + 1


def open_model(manifest: Path) -> tuple[Path, dict[str, Any]]:
    """Folder and facts of a prepared or trained model."""
    return open_artefact(manifest, "model")


def check_context(facts: dict[str, Any], tokens: int, what: str, remedy: str) -> None:
    """Raise ModelError when `what` needs more `tokens` than the model of these manifest facts takes in."""
    context = facts["max_position_embeddings"]
    if tokens > context:
        raise ModelError(f"{what} needs {tokens} tokens, but the context of {facts['name']} is {context}: lower {remedy}")


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 over the vocabulary (token, id) and the special tokens: equal means ids can be exchanged."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    content = json.dumps([vocabulary, sorted(tokenizer.all_special_ids)], ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()


def weight_hash(folder: Path) -> str:
    """Identify the weights of a folder: SHA-256 over names and whole contents of config and weight files."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), folder / "config.json"]):
        digest.update(f"{path.name} {sha256(path)}\n".encode())
    return digest.hexdigest()


def check_architecture(model: Any, folder: Path) -> None:
    """Raise ModelError unless the logits are the plain product of body and output embedding, as the fused loss takes them."""
    head = getattr(model, "lm_head", None)
    if (
        not hasattr(model, "model")
        or not hasattr(model.model, "layers")
        or head is None
        or getattr(head, "bias", None) is not None
    ):
        raise ModelError(
            f"{folder}: {type(model).__name__} has no plain `model.layers` + `lm_head` without bias: not supported"
        )
    transforms = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")
    found = [f"{name} = {value}" for name in transforms if (value := getattr(model.config, name, None)) not in (None, 1, 1.0)]
    if found:
        raise ModelError(f"{folder}: {type(model).__name__} transforms its logits ({', '.join(found)}): not supported")


def make_savable(config: Any, folder: Path) -> bool:
    """Repair a generation_config that transformers loads, but does not save once it has changed; returns whether it had to.

    Settings of sampling without `do_sample` get it; nothing here generates with them. Raises ModelError for any other fault.
    """
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True
        with _named_errors(f"{folder / 'generation_config.json'} cannot be saved after a training: correct it"):
            config.validate(strict=True)
        return True
    return False


def end_tokens(folder: Path, config: Any, tokenizer: Any) -> list[int]:
    """All tokens that end a turn, as tokenizer, generation_config.json and config.json state them.

    Raises ModelError when none does, or when one is no token.
    """
    stated = {"tokenizer": tokenizer.eos_token_id, "config.json": getattr(config, "eos_token_id", None)}
    if (folder / "generation_config.json").is_file():
        stated["generation_config.json"] = transformers.GenerationConfig.from_pretrained(folder).eos_token_id
    found: dict[int, str] = {}
    for where, ids in stated.items():
        for token in ids if isinstance(ids, list) else [] if ids is None else [ids]:
            found.setdefault(token, where)
    tokens = vocabulary_size(tokenizer)
    for token, where in found.items():
        if not 0 <= token < tokens:
            raise ModelError(
                f"{folder}: {where} states the end token {token}, but the tokenizer has ids below {tokens}: correct it"
            )
    if not found:
        raise ModelError(
            f"{folder}: neither tokenizer nor configuration states an end token: set eos_token in tokenizer_config.json"
        )
    return sorted(found)


def model_facts(folder: Path) -> dict[str, Any]:
    """What a manifest says of a model folder: parameters, vocabulary, context, ends of turns, hashes of weights and tokenizer.

    Raises ModelError for what a later stage could not load, tokenise, stop or save.
    """
    check_files(folder)
    with _named_errors(f"model folder {folder}"):
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        for needed in ("vocab_size", "max_position_embeddings"):
            if getattr(config, needed, None) is None:
                raise ModelError(
                    f"{folder}: config.json ({config.model_type}) has no {needed}: only plain text decoders are supported"
                )
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config)
    tokenizer = load_tokenizer(folder)
    tokens = vocabulary_size(tokenizer)
    if tokens > config.vocab_size:
        raise ModelError(f"{folder}: the tokenizer has ids up to {tokens - 1}, the model's embedding {config.vocab_size} rows")
    check_architecture(empty, folder)
    return {
        "parameters": empty.num_parameters(),
        "vocab_size": config.vocab_size,
        "tokens": tokens,
        "max_position_embeddings": config.max_position_embeddings,
        "end_token_ids": end_tokens(folder, config, tokenizer),
        "tokenizer_sha256": tokenizer_hash(tokenizer),
        "weights_sha256": weight_hash(folder),
    }


def check_files(folder: Path) -> None:
    """Raise ModelError unless a folder holds config.json and whole weights of a model, not an adapter's."""
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is an adapter, not a model: merge it into its base model (peft: merge_and_unload, then "
            "save_pretrained with the tokenizer) and name that folder"
        )
    if not (folder / "config.json").is_file():
        raise ModelError(f"model folder {folder} does not exist or has no config.json: check the path in the configuration")
    wanted = {path.name for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern)}
    for index in sorted(folder.glob("*.safetensors.index.json")) or folder.glob("*.bin.index.json"):
        wanted |= set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    if not wanted:
        raise ModelError(f"{folder} has no weights (*.safetensors or *.bin): copy the whole model there")
    if missing := sorted(name for name in wanted if not (folder / name).is_file()):
        raise ModelError(f"{folder} lacks weight file(s) {', '.join(missing)}: copy the whole model there")


def convert_gguf(gguf: Path, destination: Path) -> None:
    """Write a GGUF model as a Hugging Face folder in float32, with its tokenizer."""
    options = {"gguf_file": gguf.name, "dtype": torch.float32, "local_files_only": True}
    quantization = transformers.GgufConfig(dequantize=True)
    with _read_once():
        config = transformers.AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, config=config, quantization_config=quantization, **options)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    model.save_pretrained(destination)
    tokenizer.save_pretrained(destination)


@contextlib.contextmanager
def _read_once() -> Iterator[None]:
    """Let transformers parse a GGUF file once, not for configuration, weights and tokenizer each (saves half of the time)."""
    import gguf
    import numpy as np

    class Reader(gguf.GGUFReader):
        """Its bytes are a plain array: a memmap makes an object with a file of its own for each of a million slices."""

        data = property(lambda self: self._bytes, lambda self, mapped: setattr(self, "_bytes", mapped.view(np.ndarray)))

    originals = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, original in (originals | {"GGUFReader": Reader}).items():
        setattr(gguf, name, functools.cache(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(gguf, name, original)


def prune_layers(parent: Path, keep: list[int], destination: Path) -> None:
    """Write a copy of a model with only the decoder layers `keep` (ascending); embeddings and head stay as they are.

    Raises ModelError when a kept layer does not exist.
    """
    model = load_model(parent, torch.float32)
    layers = model.model.layers
    if keep[-1] >= len(layers):
        raise ModelError(f"keep_layers has {keep[-1]}, but {parent} has layers 0 to {len(layers) - 1}")
    model.model.layers = torch.nn.ModuleList(layers[index] for index in keep)
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = index
    model.config.num_hidden_layers = len(keep)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[index] for index in keep]
    model.save_pretrained(destination)
    load_tokenizer(parent).save_pretrained(destination)


def hub_snapshot(repo_id: str, revision: str, only: list[str] | None = None) -> Path:
    """Folder of a hub model, whole or `only` files of these patterns.

    From the local cache when it is there, else downloaded (unless HF_HUB_OFFLINE=1).
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=only, local_files_only=True))
    except Exception as missing:
        if os.environ.get("HF_HUB_OFFLINE") == "1":
            raise ModelError(
                f"{repo_id}@{revision} is not in the local Hugging Face cache and HF_HUB_OFFLINE=1: download it where there "
                f"is network (`hf download {repo_id}`), or name a local folder"
            ) from missing
    with _named_errors(f"download of {repo_id}@{revision}"):
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=only))


class _named_errors(contextlib.AbstractContextManager[None]):
    """Turn a library's long error into one ModelError that says what was being opened."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (OSError, ValueError)):
            raise ModelError(f"{self._what}: {' '.join(str(error).split())[:400]}") from error
