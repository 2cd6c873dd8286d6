"""merge_answers: filter the answers of all parts of synthetic_generation and publish them as an SFT data set.

python -m workflow_scripts.stages.merge_answers --settings JSON --teacher MANIFEST --corpus MANIFEST [--parts MANIFEST …]
    --out MANIFEST

Writes train.parquet with example_id, messages, input_ids, loss_mask, truncated. With `use_existing` it adopts the data set that
is at synthetic_dataset_path instead.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from workflow_scripts.artefact import MANIFEST, inherited, inventory, open_artefact, point_to, read_json
from workflow_scripts.distill import corpus
from workflow_scripts.distill.filtering import rejection
from workflow_scripts.progress import Progress
from workflow_scripts.settings.synthetic_data import Filtering
from workflow_scripts.stages.runtime.common import Arguments, build_dir, publish, run_stage
from workflow_scripts.stages.runtime.units import Units, unit_count


def merge_answers(args: Arguments) -> None:
    """Filter in the order of the prompts, so that the same answer of two prompts is kept for the first."""
    data = args.settings.synthetic_data
    bulk = Path(data.synthetic_dataset_path).expanduser() if data.synthetic_dataset_path else None
    corpus_folder, facts = open_artefact(args.inputs["corpus"], "corpus")
    if data.use_existing and bulk is not None:
        adopt(bulk, facts["tokenizer_sha256"], args.out)
        return
    teacher = read_json(args.inputs["teacher"])
    build = build_dir(args.out, bulk, "synthetic_dataset")
    questions = corpus.questions(corpus_folder, "train", data.max_gen_examples)
    with Progress("generated") as progress:
        units = Units(unit_count(args.parts)).all(args.parts, progress)
        answers = {answer["example_id"]: answer for unit in units for answer in unit["answers"]}
        kept, rejected = keep_usable(questions, answers, data.filtering, progress)
        progress.metrics = {"kept": len(kept), "rejected": dict(rejected)}
    if not kept:
        raise corpus.CorpusError(f"synthetic_data: all {len(answers)} answers were filtered out: {dict(rejected)}")
    corpus.write_table(build / "train.parquet", kept)
    content = {
        "teacher": teacher["name"],
        "tokenizer_sha256": facts["tokenizer_sha256"],
        "examples": len(kept),
        "rejected": dict(rejected),
        "loss_tokens": sum(corpus.loss_tokens(row) for row in kept),
    }
    publish(build, args.out, "synthetic_dataset", content | inherited(args.inputs.values()), bulk)


def keep_usable(
    questions: dict[int, corpus.Messages], answers: dict[int, dict[str, Any]], filtering: Filtering, progress: Progress
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Training rows of the usable answers, and the rejected ones counted by reason and as discarded tokens."""
    kept: list[dict[str, Any]] = []
    rejected: Counter[str] = Counter()
    seen: set[str] = set()
    discarded = 0
    for example, messages in questions.items():
        if example not in answers:  # every unit is whole, so this one was never asked
            rejected["prompt_too_long"] += 1
            continue
        answer = answers[example]
        reason = rejection(answer["text"], answer["length"], answer["truncated"], filtering, seen)
        if reason:
            rejected[reason] += 1
            discarded += answer["generated"]
        else:
            kept.append(training_row(messages, answer))
    progress.add(discarded=discarded)
    return kept, rejected


def training_row(messages: corpus.Messages, answer: dict[str, Any]) -> dict[str, Any]:
    """A tokenised row: loss on the answer and, when the teacher ended by itself, on the end token."""
    return {
        "example_id": answer["example_id"],
        "messages": [*messages, {"role": "assistant", "content": answer["text"]}],
        "input_ids": answer["prompt_ids"] + answer["completion"],
        "loss_mask": [0] * len(answer["prompt_ids"]) + [1] * len(answer["completion"]),
        "truncated": answer["truncated"],
    }


def adopt(folder: Path, tokenizer_sha256: str, out: Path) -> None:
    """Point to a data set that is there already, made here or elsewhere.

    Raises CorpusError when it is not there, lacks a column, or says that it was made with another tokenizer.
    """
    table = folder / "train.parquet"
    if not table.is_file():
        raise corpus.CorpusError(
            f"synthetic_data.use_existing = true, but {table} does not exist: make it (use_existing: false) or correct the path"
        )
    rows = corpus.read_table(table)
    missing = [c for c in ("example_id", "messages", "input_ids", "loss_mask") if not rows or c not in rows[0]]
    if missing:
        raise corpus.CorpusError(f"{table} has no column {', '.join(missing)}")
    made = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    if made.get("tokenizer_sha256", tokenizer_sha256) != tokenizer_sha256:
        raise corpus.CorpusError(f"{folder} was made with another tokenizer: its token ids mean nothing here")
    warnings = {"warnings": made["warnings"]} if "warnings" in made else {}
    facts = {"adopted": True, "published_by": made.get("published_by"), "examples": len(rows), "files": inventory(folder)}
    point_to(folder, out, "synthetic_dataset", facts | {"tokenizer_sha256": tokenizer_sha256} | warnings)


if __name__ == "__main__":
    run_stage(merge_answers, ["teacher", "corpus"], parts=True)
