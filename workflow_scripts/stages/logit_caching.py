"""logit_caching: keep the teacher's top-k logits at every loss position of the training split.

    python -m workflow_scripts.stages.logit_caching --settings JSON --teacher MANIFEST --corpus MANIFEST --out MANIFEST

One shard is one resumable unit: finished shards stay in the state folder until all are there.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from workflow_scripts.artefact import open_artefact
from workflow_scripts.distill import logit_cache
from workflow_scripts.distill.batching import by_length, pad_rows
from workflow_scripts.distill.corpus import read_table
from workflow_scripts.distill.models import compute_dtype, load_model, load_tokenizer, open_model
from workflow_scripts.progress import Progress, state_dir
from workflow_scripts.settings.slices import LogitCachingSlice
from workflow_scripts.stages.common import Arguments, build_dir, publish, restore, run_stage


def logit_caching(args: Arguments[LogitCachingSlice]) -> None:
    """Forward the teacher shard by shard, then publish all shards with their manifest."""
    if restore(args.out):
        return
    settings = args.settings
    teacher_folder, teacher = open_model(args.inputs["teacher"])
    corpus_folder, corpus = open_artefact(args.inputs["corpus"], "corpus")
    if settings.top_k_logits > teacher["tokens"]:
        raise logit_cache.CacheError(
            f"distillation.top_k_logits = {settings.top_k_logits}, but the vocabulary has {teacher['tokens']} tokens"
        )
    if teacher["vocab_size"] > logit_cache.MAX_VOCABULARY:
        raise logit_cache.CacheError(
            f"the teacher's vocabulary has {teacher['vocab_size']} tokens, but the cache stores ids below "
            f"{logit_cache.MAX_VOCABULARY} only: choose another teacher"
        )
    rows = read_table(corpus_folder / "train.parquet")
    parts = [rows[b : b + settings.shard_examples] for b in range(0, len(rows), settings.shard_examples)]
    bulk = Path(settings.logprob_cache_path).expanduser() / "teacher_logprobs" if settings.logprob_cache_path else None
    build = build_dir(args.out, bulk, "logit_cache")
    finished = state_dir() / "shards"
    finished.mkdir(exist_ok=True)
    model = load_model(teacher_folder, compute_dtype(settings.dtype), settings.attn_implementation)
    pad_id = load_tokenizer(teacher_folder).pad_token_id
    mass: list[tuple[int, dict[str, float]]] = []
    with Progress("loss", total=corpus["splits"]["train"]["loss_tokens"]) as progress:
        for number, part in enumerate(parts):
            path = finished / f"shard-{number:05d}.safetensors"
            if path.is_file():
                entry = logit_cache.shard_entry(path)
                mass.append((entry["positions"], entry["retained_mass"]))
                length = sum(len(row["input_ids"]) for row in part)
                progress.add(examples=entry["examples"], loss=entry["positions"], input=length)
                progress.resume(examples=progress.examples, **progress.tokens)
                print(f"{path.name} is there from an earlier attempt", flush=True)
                continue
            shard = compute_shard(model, part, settings, pad_id, teacher["tokens"], progress)
            kept = logit_cache.retained_mass(shard, settings.cache_temperatures)
            logit_cache.write_shard(path, shard, teacher["vocab_size"], kept)
            mass.append((sum(shard.positions), kept))
            progress.saved()
        positions = sum(count for count, _ in mass)
        progress.metrics["retained_mass"] = {
            str(t): sum(count * kept[str(t)] for count, kept in mass) / positions for t in settings.cache_temperatures
        }
    entries = []
    for path in sorted(finished.glob("shard-*.safetensors")):
        shutil.copyfile(path, build / path.name)
        entries.append(logit_cache.shard_entry(path))
    facts: dict[str, Any] = {
        "teacher": teacher["name"],
        "teacher_weights_sha256": teacher["weights_sha256"],
        "tokenizer_sha256": corpus["tokenizer_sha256"],
        "corpus_sha256": corpus["corpus_sha256"],
        "vocab_size": teacher["vocab_size"],
        "k": settings.top_k_logits,
        "temperatures": settings.cache_temperatures,
        "dtype": str(compute_dtype(settings.dtype)).removeprefix("torch."),
        "shards": entries,
    }
    publish(build, args.out, "logit_cache", facts, bulk)
    shutil.rmtree(finished)


def compute_shard(
    model: Any, rows: list[dict[str, Any]], settings: LogitCachingSlice, pad_id: int, vocabulary: int, progress: Progress
) -> logit_cache.Shard:
    """One shard, in batches of similar length."""
    pieces = []
    for batch in by_length(rows, settings.batch_size, lambda row: len(row["input_ids"])):
        piece = logit_cache.teacher_rows(model, batch, settings.top_k_logits, settings.cache_temperatures, pad_id, vocabulary)
        progress.add(
            examples=len(batch),
            loss=sum(piece.positions),
            input=sum(len(row["input_ids"]) for row in batch),
            padded=pad_rows(batch, pad_id).padded_tokens(),
        )
        pieces.append(piece)
    return logit_cache.join(pieces)


if __name__ == "__main__":
    run_stage(logit_caching, LogitCachingSlice, ["teacher", "corpus"])
