"""merge_logits: gather the shards of all parts of logit_caching into one cache.

python -m workflow_scripts.stages.merge_logits --settings JSON --teacher MANIFEST --corpus MANIFEST --parts MANIFEST …
    --out MANIFEST
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workflow_scripts.artefact import LOGIT_FORMATS, inherited, read_json
from workflow_scripts.progress import Progress
from workflow_scripts.stages.runtime.common import Arguments, build_dir, publish, run_stage
from workflow_scripts.stages.runtime.units import Units, unit_count

QUALITY = {"top_k": "retained_mass", "random": "entries"}


def merge_logits(args: Arguments) -> None:
    """Link the shards into a folder, publish it, and let the state folder forget them."""
    options = args.settings.distillation
    teacher, corpus = read_json(args.inputs["teacher"]), read_json(args.inputs["corpus"])
    bulk = Path(options.logprob_cache_path).expanduser() / "teacher_logprobs" if options.logprob_cache_path else None
    build = build_dir(args.out, bulk, "logit_cache")
    units = Units(unit_count(args.parts))
    with Progress("loss", total=corpus["splits"]["train"]["loss_tokens"]) as progress:
        shards = units.all(args.parts, progress)
        positions = sum(shard["positions"] for shard in shards)
        quality = QUALITY[options.sampling]
        progress.metrics[quality] = {
            str(t): sum(s["positions"] * s[quality][str(t)] for s in shards) / positions for t in options.cache_temperatures
        }
    for shard in shards:
        units.link_into(shard["file"], build)
    facts: dict[str, Any] = {
        "teacher": teacher["name"],
        "teacher_weights_sha256": teacher["weights_sha256"],
        "tokenizer_sha256": corpus["tokenizer_sha256"],
        "corpus_sha256": corpus["corpus_sha256"],
        "vocab_size": teacher["vocab_size"],
        "format": LOGIT_FORMATS[options.sampling],
        "k": max(shard["width"] for shard in shards),
        "draws": options.sampling_draws if options.sampling == "random" else None,
        "seed": options.sampling_seed if options.sampling == "random" else None,
        "temperatures": options.cache_temperatures,
        "dtype": shards[0]["dtype"],
        "shards": [{key: shard[key] for key in ("file", "examples", "positions", quality)} for shard in shards],
    }
    publish(build, args.out, "logit_cache", facts | inherited(args.inputs.values()), bulk)
    units.merged_into(bulk or args.out.parent)


if __name__ == "__main__":
    run_stage(merge_logits, ["teacher", "corpus"], parts=True)
