"""preference_dataset: the teacher samples answers and scores them by its own likelihood; a judge may compare them, too.

python -m workflow_scripts.stages.preference_dataset --settings JSON --teacher MANIFEST --corpus MANIFEST --part N-of-M
    [--judge MANIFEST] --out MANIFEST

A batch of prompts with all their samples is one unit: finished ones stay in the state folder; merge_pairs ranks and publishes
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workflow_scripts.artefact import open_artefact
from workflow_scripts.distill import corpus
from workflow_scripts.distill.backends import Backend, check_backend, open_backend
from workflow_scripts.distill.batching import by_length, in_batches
from workflow_scripts.distill.generation import Answer, Prompt, ends_of_turns, prompt_tokens, that_fit
from workflow_scripts.distill.judge import Judge, JudgeError
from workflow_scripts.distill.models import compute_dtype, load_frozen, load_tokenizer, open_model
from workflow_scripts.distill.scoring import log_likelihoods
from workflow_scripts.distill.seeds import prompt_seed
from workflow_scripts.progress import Progress
from workflow_scripts.settings.dpo import Dpo
from workflow_scripts.stages.runtime.common import Arguments, run_stage
from workflow_scripts.stages.runtime.units import Part, Units, finish_part


def preference_dataset(args: Arguments) -> None:
    """Sample and score the prompts of one part, of both splits."""
    settings, part = args.settings, Part.parse(args.extra["part"])
    options = settings.dpo.generation
    teacher_folder, teacher = open_model(args.inputs["teacher"])
    check_backend(options, "dpo.generation")
    corpus_folder, facts = open_artefact(args.inputs["corpus"], "corpus")
    tokenizer = load_tokenizer(corpus_folder / "tokenizer")
    prompts, asked = read_prompts(corpus_folder, settings.dpo, tokenizer)
    prompts = that_fit(prompts, lambda samples: len(samples[0].input_ids), options.max_new_tokens, teacher)
    batches = by_length(prompts, max(1, options.batch_size // settings.dpo.samples_per_prompt), lambda p: len(p[0].input_ids))
    units = Units(len(batches))
    mine = sum(len(batches[number]) for number in part.numbers(len(batches))) * settings.dpo.samples_per_prompt
    with Progress("generated", total=mine * options.max_new_tokens, phase="start") as progress:
        todo = list(units.todo(part, "scatter.preference_dataset", progress))
        judge: Judge | None = None
        if todo:
            dtype = compute_dtype(settings.teacher.dtype, training=False)
            model = load_frozen(teacher_folder, dtype, settings.model.attn_implementation)
            write = open_backend(
                options,
                teacher_folder,
                dtype,
                settings.model.attn_implementation,
                max(len(samples[0].input_ids) for samples in prompts),
                ends_of_turns(teacher, facts),
                tokenizer.pad_token_id,
                loaded=model,
            )
            if hasattr(settings.dpo, "judge_labeling"):  # the slice has it only where a judge is asked
                judge = open_judge(args, model, teacher, tokenizer)
        progress.phase("work")
        for number in todo:
            batch = [prompt for samples in batches[number] for prompt in samples]
            rows, work = sample_and_score(model, write, batch, settings.dpo, tokenizer, progress)
            if judge:
                work["input"] += put_wins(judge, rows, asked, progress)
                judge.check(number == todo[-1])
            units.save(number, {"work": work, "samples": rows})
            progress.saved()
    if judge and judge.neither:
        print(f"{judge.name} chose neither answer in {judge.neither} of {judge.asked} comparisons", flush=True)
    finish_part(args.out, part, units)


def read_prompts(
    corpus_folder: Any, settings: Dpo, tokenizer: Any
) -> tuple[list[list[Prompt]], dict[tuple[str, int], corpus.Messages]]:
    """For each question of both splits, one prompt per sample, and the questions by split and example id.

    Keys of prompts are (split, example id, sample number).
    """
    found, asked = [], {}
    for split, count in (("train", settings.train_prompts), ("evaluation", settings.evaluation_prompts)):
        for example, question in corpus.questions(corpus_folder, split, count).items():
            asked[split, example] = question
            ids = prompt_tokens(tokenizer, question)
            samples = range(settings.samples_per_prompt)
            seed = settings.generation.seed
            found.append([Prompt((split, example, n), ids, prompt_seed(seed, example, n)) for n in samples])
    return found, asked


def open_judge(args: Arguments, teacher: Any, facts: Mapping[str, Any], tokenizer: Any) -> Judge:
    """The `judge` among the inputs with its own chat template, else the teacher, loaded already, with that of the corpus."""
    rows, other = args.settings.dpo.generation.batch_size, args.inputs.get("judge")
    if other is None:
        return Judge(teacher, tokenizer, facts["name"], facts["max_position_embeddings"], rows)
    folder, facts = open_model(other)
    tokenizer = load_tokenizer(folder)
    if not tokenizer.chat_template:
        raise JudgeError(
            f"dpo.judge_labeling.judge_model: the tokenizer of {facts['name']} has no chat template: name a model that follows "
            "instructions"
        )
    dtype = compute_dtype(args.settings.teacher.dtype, training=False)
    model = load_frozen(folder, dtype, args.settings.model.attn_implementation)
    return Judge(model, tokenizer, facts["name"], facts["max_position_embeddings"], rows)


def put_wins(
    judge: Judge, rows: list[dict[str, Any]], asked: Mapping[tuple[str, int], corpus.Messages], progress: Progress
) -> int:
    """Put the judge's `wins` into the samples of a batch; returns the tokens that it has read."""
    by_prompt: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault(row["key"][:2], []).append(row)
    questions = [(asked[key], [row["text"] for row in own]) for key, own in by_prompt.items()]
    before = judge.read
    for own, won in zip(by_prompt.values(), judge.wins(questions), strict=True):
        for row, count in zip(own, won, strict=True):
            row["wins"] = count
    progress.add(input=judge.read - before)
    return judge.read - before


def sample_and_score(
    teacher: Any, write: Backend, prompts: list[Prompt], settings: Dpo, tokenizer: Any, progress: Progress
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Samples of a batch with the teacher's log-likelihood, and the work done."""
    by_key = {prompt.key: prompt for prompt in prompts}
    found, work = [], {"examples": 0, "generated": 0, "input": 0}
    for answers in write(prompts):
        rows = [scoring_row(by_key[a.key], a) for a in answers]
        added = {
            "examples": len(answers),
            "generated": sum(answer.generated for answer in answers),
            "input": sum(len(row["input_ids"]) for row in rows),
        }
        batches = by_length(rows, settings.generation.batch_size, lambda row: len(row["input_ids"]))
        for batch, likelihoods in in_batches(batches, lambda batch: log_likelihoods(teacher, batch, tokenizer.pad_token_id)):
            for row, likelihood in zip(batch, likelihoods, strict=True):
                found.append(sample_row(row, likelihood, by_key[row["key"]], tokenizer))
        work = {kind: count + added[kind] for kind, count in work.items()}
        progress.add(**added)
    return found, work


def scoring_row(prompt: Prompt, answer: Answer) -> dict[str, Any]:
    """A row for the teacher: the prompt that was really used, loss on the completion."""
    return {
        "key": prompt.key,
        "answer": answer,
        "input_ids": prompt.input_ids + answer.completion,
        "loss_mask": [0] * len(prompt.input_ids) + [1] * answer.generated,
    }


def sample_row(row: dict[str, Any], likelihood: float, prompt: Prompt, tokenizer: Any) -> dict[str, Any]:
    """What the merge needs of one sample."""
    answer = row["answer"]
    return {
        "key": prompt.key,
        "prompt_ids": prompt.input_ids,
        "text": tokenizer.decode(answer.token_ids, skip_special_tokens=True),
        "token_ids": answer.completion,
        "truncated": answer.truncated,
        "seed": prompt.seed,
        "log_likelihood": likelihood,
    }


if __name__ == "__main__":
    run_stage(preference_dataset, ["teacher", "corpus", "judge?"], ["part"])
