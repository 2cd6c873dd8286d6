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
from workflow_scripts.stages.rollout import prompts_of
from workflow_scripts.stages.runtime.common import Arguments, build_dir, publish, run_stage
from workflow_scripts.stages.runtime.units import Units, unit_count


def merge_rollouts(args: Arguments) -> None:
    """Leave out empty answers, and publish the rest. Raises CorpusError when all are empty."""
    folder, facts = open_artefact(args.inputs["corpus"], "corpus")
    questions = prompts_of(args, args.settings.opd)
    build = build_dir(args.out)
    with Progress("generated") as progress:
        units = Units(unit_count(args.parts)).all(args.parts, progress)
        answers = {answer["example_id"]: answer for unit in units for answer in unit["answers"]}
        rows = [training_row(questions[example], answers[example]) for example in questions if _usable(answers.get(example))]
        discarded = sum(answer["generated"] for answer in answers.values() if not _usable(answer))
        progress.add(discarded=discarded)
        progress.metrics = {"kept": len(rows), "empty": len(answers) - len(rows)}
    if not rows:
        raise corpus.CorpusError(
            f"opd: all {len(answers)} rollouts are empty, the student writes only ends: start from a trained one (model.policy)"
        )
    corpus.write_table(build / "train.parquet", rows)
    for name in ("evaluation.parquet", "tokenizer"):
        copy = shutil.copytree if (folder / name).is_dir() else shutil.copyfile
        copy(folder / name, build / name)
    counts = {
        "examples": len(rows),
        "dropped_without_loss_tokens": len(answers) - len(rows),
        "truncated": sum(row["truncated"] for row in rows),
        "loss_tokens": sum(corpus.loss_tokens(row) for row in rows),
        "input_tokens": sum(len(row["input_ids"]) for row in rows),
    }
    content = {key: facts[key] for key in ("tokenizer_sha256", "split_sha256", "end_token_id")}
    content |= {"corpus_sha256": sha256(build / "train.parquet"), "splits": facts["splits"] | {"train": counts}}
    publish(build, args.out, "corpus", content | inherited(args.inputs.values()))


def _usable(answer: dict[str, object] | None) -> bool:
    """Whether there is an answer with a token before its end."""
    return answer is not None and answer["length"] != 0


if __name__ == "__main__":
    run_stage(merge_rollouts, ["student", "corpus"], parts=True)
