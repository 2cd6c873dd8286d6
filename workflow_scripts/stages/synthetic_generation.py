"""synthetic_generation: the teacher answers training prompts; filtered answers become an SFT data set.

    python -m workflow_scripts.stages.synthetic_generation --settings JSON --teacher MANIFEST --corpus MANIFEST --out MANIFEST

Writes train.parquet with example_id, messages, input_ids, loss_mask, truncated. Finished batches stay in the state folder.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from workflow_scripts.artefact import MANIFEST, inventory, open_artefact, point_to, read_json, replace_lines
from workflow_scripts.distill import corpus
from workflow_scripts.distill.batching import loss_tokens
from workflow_scripts.distill.filtering import rejection
from workflow_scripts.distill.generation import Answer, Prompt, generate, prompt_seed, prompt_tokens
from workflow_scripts.distill.models import compute_dtype, load_model, load_tokenizer, open_model
from workflow_scripts.progress import Progress, state_dir
from workflow_scripts.settings.schema import Filtering
from workflow_scripts.settings.slices import SyntheticGenerationSlice
from workflow_scripts.stages.common import Arguments, build_dir, publish, restore, run_stage


def synthetic_generation(args: Arguments[SyntheticGenerationSlice]) -> None:
    """Generate, filter, publish; or adopt the data set that is already at synthetic_dataset_path."""
    data = args.settings.data
    bulk = Path(data.synthetic_dataset_path).expanduser() if data.synthetic_dataset_path else None
    corpus_folder, corpus_facts = open_artefact(args.inputs["corpus"], "corpus")
    if data.use_existing and bulk is not None:
        adopt(bulk, corpus_facts["tokenizer_sha256"], args.out)
        return
    if restore(args.out):
        return
    teacher_folder, teacher = open_model(args.inputs["teacher"])
    build = build_dir(args.out, bulk, "synthetic_dataset")
    tokenizer = load_tokenizer(corpus_folder / "tokenizer")
    questions = read_questions(corpus_folder, data.max_gen_examples)
    prompts = [
        Prompt(key, prompt_tokens(tokenizer, question), prompt_seed(data.generation.seed, key))
        for key, question in questions.items()
    ]
    with Progress("generated", total=len(prompts) * data.generation.max_new_tokens) as progress:
        answers = answer_all(args.settings, teacher_folder, tokenizer, prompts, progress)
        kept, rejected = keep_usable(prompts, answers, questions, tokenizer, data.filtering, progress)
        progress.metrics = {"kept": len(kept), "rejected": dict(rejected)}
    if not kept:
        raise corpus.CorpusError(f"synthetic_data: all {len(prompts)} answers were filtered out: {dict(rejected)}")
    corpus.write_table(build / "train.parquet", kept)
    facts = {
        "teacher": teacher["name"],
        "tokenizer_sha256": corpus_facts["tokenizer_sha256"],
        "examples": len(kept),
        "rejected": dict(rejected),
        "loss_tokens": sum(loss_tokens(row) for row in kept),
    }
    publish(build, args.out, "synthetic_dataset", facts, bulk)


def read_questions(corpus_folder: Path, limit: int) -> dict[int, corpus.Messages]:
    """Up to `limit` training conversations by example id, each cut after its last user turn."""
    rows = corpus.read_table(corpus_folder / "train.parquet")
    found = [(row["example_id"], prompt) for row in rows if (prompt := corpus.prompt_of(row["messages"]))]
    return dict(found[:limit])


def answer_all(
    settings: SyntheticGenerationSlice, teacher: Path, tokenizer: Any, prompts: list[Prompt], progress: Progress
) -> dict[int, Answer]:
    """All answers; those of earlier attempts come from the journal in the state folder."""
    journal = state_dir() / "answers.jsonl"
    lengths = {prompt.key: len(prompt.input_ids) for prompt in prompts}
    done = read_journal(journal, lengths, progress)
    todo = [prompt for prompt in prompts if prompt.key not in done]
    if not todo:
        return done
    model = load_model(teacher, compute_dtype(settings.dtype), settings.attn_implementation)
    with journal.open("a", encoding="utf-8") as handle:
        for answers in generate(model, todo, settings.data.generation, [tokenizer.eos_token_id], tokenizer.pad_token_id):
            handle.writelines(json.dumps(vars(answer)) + "\n" for answer in answers)
            handle.flush()
            done.update({answer.key: answer for answer in answers})
            progress.add(
                examples=len(answers),
                generated=sum(answer.generated for answer in answers),
                input=sum(lengths[answer.key] for answer in answers),
            )
            progress.saved()
    return done


def keep_usable(
    prompts: list[Prompt],
    answers: dict[int, Answer],
    questions: dict[int, corpus.Messages],
    tokenizer: Any,
    filtering: Filtering,
    progress: Progress,
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Training rows of the usable answers, and the rejected ones counted by reason and as discarded tokens."""
    kept: list[dict[str, Any]] = []
    rejected: Counter[str] = Counter()
    seen: set[str] = set()
    discarded = 0
    for prompt in prompts:
        answer = answers[prompt.key]
        text = tokenizer.decode(answer.token_ids, skip_special_tokens=True)
        reason = rejection(answer, text, filtering, seen)
        if reason:
            rejected[reason] += 1
            discarded += answer.generated
        else:
            kept.append(training_row(prompt, answer, questions[prompt.key], text, tokenizer.eos_token_id))
    progress.add(discarded=discarded)
    return kept, rejected


def training_row(prompt: Prompt, answer: Answer, messages: corpus.Messages, text: str, eos_id: int) -> dict[str, Any]:
    """A tokenised row: loss on the answer and, when the teacher ended by itself, on the end token."""
    completion = answer.token_ids + ([] if answer.truncated else [eos_id])
    return {
        "example_id": prompt.key,
        "messages": [*messages, {"role": "assistant", "content": text}],
        "input_ids": prompt.input_ids + completion,
        "loss_mask": [0] * len(prompt.input_ids) + [1] * len(completion),
        "truncated": answer.truncated,
    }


def read_journal(journal: Path, lengths: dict[int, int], progress: Progress) -> dict[int, Answer]:
    """Answers of earlier attempts; a line cut by a kill is ignored and its prompt answered again."""
    done: dict[int, Answer] = {}
    whole = []
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else []:
        try:
            answer = Answer(**json.loads(line))
        except json.JSONDecodeError:
            print("a line of answers.jsonl was cut by a kill: its prompt is answered again", flush=True)
            continue
        done[answer.key] = answer
        whole.append(line + "\n")
    if journal.is_file():
        replace_lines(journal, whole)
    if done:
        read = sum(lengths[key] for key in done)
        progress.resume(examples=len(done), generated=sum(answer.generated for answer in done.values()), input=read)
        print(f"{len(done)} answers are there from earlier attempts", flush=True)
    return done


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
    facts = {"adopted": True, "published_by": made.get("published_by"), "examples": len(rows), "files": inventory(folder)}
    point_to(folder, out, "synthetic_dataset", facts | {"tokenizer_sha256": tokenizer_sha256})


if __name__ == "__main__":
    run_stage(synthetic_generation, SyntheticGenerationSlice, ["teacher", "corpus"])
