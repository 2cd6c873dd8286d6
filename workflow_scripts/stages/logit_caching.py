"""logit_caching: keep the teacher's top-k logits, or random draws, at every loss position of the training split.

python -m workflow_scripts.stages.logit_caching --settings JSON --teacher MANIFEST --corpus MANIFEST --part N-of-M
    --out MANIFEST

One shard is one unit: finished shards stay in the state folder until merge_logits publishes them.
"""

from __future__ import annotations

from typing import Any

from workflow_scripts.artefact import open_artefact
from workflow_scripts.distill import logit_cache
from workflow_scripts.distill.batching import by_length, in_batches
from workflow_scripts.distill.corpus import loss_tokens, read_table
from workflow_scripts.distill.models import check_context, compute_dtype, load_frozen, load_tokenizer, open_model
from workflow_scripts.progress import Progress
from workflow_scripts.settings.distillation import Distillation
from workflow_scripts.stages.runtime.common import Arguments, run_stage
from workflow_scripts.stages.runtime.units import Part, Units, finish_part


def logit_caching(args: Arguments) -> None:
    """Forward the teacher over the shards of one part."""
    settings, part = args.settings, Part.parse(args.extra["part"])
    options = settings.distillation
    teacher_folder, teacher = open_model(args.inputs["teacher"])
    corpus_folder, _ = open_artefact(args.inputs["corpus"], "corpus")
    if options.sampling == "top_k" and options.top_k_logits > teacher["tokens"]:
        raise logit_cache.CacheError(
            f"distillation.top_k_logits = {options.top_k_logits}, but the vocabulary has {teacher['tokens']} tokens"
        )
    if teacher["tokens"] > logit_cache.MAX_VOCABULARY:
        raise logit_cache.CacheError(
            f"the teacher's vocabulary has {teacher['tokens']} tokens, but the cache stores ids below "
            f"{logit_cache.MAX_VOCABULARY} only: choose another teacher"
        )
    rows = read_table(corpus_folder / "train.parquet")
    check_context(teacher, max(len(row["input_ids"]) for row in rows), "the longest row", "data.max_sequence_length")
    shards = [rows[b : b + options.shard_examples] for b in range(0, len(rows), options.shard_examples)]
    units = Units(len(shards))
    mine = [row for number in part.numbers(len(shards)) for row in shards[number]]
    with Progress("loss", total=sum(loss_tokens(row) for row in mine), phase="start") as progress:
        todo = list(units.todo(part, "scatter.logit_caching", progress))
        if todo:
            dtype = compute_dtype(settings.teacher.dtype, training=False)
            model = load_frozen(teacher_folder, dtype, settings.model.attn_implementation)
            pad_id = load_tokenizer(teacher_folder).pad_token_id
        progress.phase("work")
        for number in todo:
            before = dict(progress.tokens)
            shard = compute_shard(model, shards[number], options, pad_id, teacher["tokens"], progress)
            path = units.data(f"shard-{number:05d}.safetensors")
            logit_cache.write_shard(path, shard, teacher["tokens"])
            work = {kind: count - before.get(kind, 0) for kind, count in progress.tokens.items()}
            facts = {
                "work": {"examples": len(shard.positions), **work},
                "examples": len(shard.positions),
                "positions": sum(shard.positions),
                "width": shard.width(),
                **shard.quality(options.cache_temperatures),
                "dtype": str(dtype).removeprefix("torch."),
            }
            units.save(number, facts, path)
            progress.saved()
    finish_part(args.out, part, units)


def compute_shard(
    model: Any, rows: list[dict[str, Any]], options: Distillation, pad_id: int, vocabulary: int, progress: Progress
) -> Any:
    """One shard (logit_cache.Shard or DrawnShard), in batches of similar length."""
    temperatures = options.cache_temperatures
    pieces: list[Any] = []
    batches = by_length(rows, options.batch_size, lambda row: len(row["input_ids"]))

    def forward(batch: list[dict[str, Any]]) -> Any:
        if options.sampling == "random":
            draws, seed = options.sampling_draws, options.sampling_seed
            return logit_cache.drawn_rows(model, batch, draws, seed, temperatures, pad_id, vocabulary)
        return logit_cache.teacher_rows(model, batch, options.top_k_logits, temperatures, pad_id, vocabulary)

    for batch, piece in in_batches(batches, forward):
        lengths = [len(row["input_ids"]) for row in batch]
        progress.add(
            examples=len(batch),
            loss=sum(piece.positions),
            input=sum(lengths),
            padded=max(lengths) * len(lengths) - sum(lengths),
        )
        pieces.append(piece)
    return type(pieces[0]).join(pieces)


if __name__ == "__main__":
    run_stage(logit_caching, ["teacher", "corpus"], ["part"])
