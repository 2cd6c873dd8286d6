"""merge_rollouts: gather what the student wrote into a corpus, with the held-out split and tokenizer of the one that it asked.

python -m workflow_scripts.stages.merge_rollouts --settings JSON --student MANIFEST --corpus MANIFEST --parts MANIFEST …
    --out MANIFEST
"""

from __future__ import annotations

import shutil

from workflow_scripts.artefact import inherited, open_artefact, sha256
from workflow_scripts.distill import corpus
from workflow_scripts.progress import Progress
from workflow_scripts.stages.merge_answers import training_row
from workflow_scripts.stages.runtime.common import Arguments, build_dir, publish, run_stage
from workflow_scripts.stages.runtime.units import Units, unit_count


def merge_rollouts(args: Arguments) -> None:
    """Publish all answers, those of the end token alone among them. Raises CorpusError when there are no others."""
    folder, facts = open_artefact(args.inputs["corpus"], "corpus")
    options = args.settings.opd
    questions = corpus.drawn(folder, facts, options.generation.seed, options.prompts_per_round)
    build = build_dir(args.out)
    with Progress("generated") as progress:
        units = Units(unit_count(args.parts)).all(args.parts, progress)
        answers = {answer["example_id"]: answer for unit in units for answer in unit["answers"]}
        rows = [training_row(questions[example], answers[example]) for example in questions if example in answers]
        empty = sum(answer["length"] == 0 for answer in answers.values())
        progress.metrics = {"kept": len(rows), "empty": empty}
    if empty == len(rows):
        raise corpus.CorpusError(
            f"opd: all {len(answers)} rollouts are empty, the student writes only ends: start from a trained one (model.policy)"
        )
    corpus.write_table(build / "train.parquet", rows)
    for name in ("evaluation.parquet", "tokenizer"):
        copy = shutil.copytree if (folder / name).is_dir() else shutil.copyfile
        copy(folder / name, build / name)
    counts = {
        "examples": len(rows),
        "truncated": sum(row["truncated"] for row in rows),
        "loss_tokens": sum(corpus.loss_tokens(row) for row in rows),
        "input_tokens": sum(len(row["input_ids"]) for row in rows),
    }
    content = {key: facts[key] for key in ("tokenizer_sha256", "split_sha256", "end_token_id")}
    content |= {"corpus_sha256": sha256(build / "train.parquet"), "splits": facts["splits"] | {"train": counts}}
    publish(build, args.out, "corpus", content | inherited(args.inputs.values()))


if __name__ == "__main__":
    run_stage(merge_rollouts, ["student", "corpus"], parts=True)
