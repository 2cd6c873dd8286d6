"""preference_dataset: the teacher samples answers and ranks them by its own likelihood.

    python -m workflow_scripts.stages.preference_dataset --settings JSON --teacher MANIFEST --corpus MANIFEST --out MANIFEST

Writes train.parquet and evaluation.parquet in TRL's conversational preference format: prompt, chosen, rejected as message
lists, with their tokens, scores, seeds and lengths beside them. Evaluation pairs come from held-out prompts. Finished samples
stay in the state folder.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from workflow_scripts.artefact import open_artefact, replace_lines
from workflow_scripts.distill import corpus, preference
from workflow_scripts.distill.batching import by_length
from workflow_scripts.distill.generation import Answer, Prompt, generate, prompt_seed, prompt_tokens
from workflow_scripts.distill.models import compute_dtype, load_model, load_tokenizer, open_model
from workflow_scripts.distill.scoring import log_likelihoods
from workflow_scripts.progress import Progress, state_dir
from workflow_scripts.settings.slices import PreferenceDatasetSlice
from workflow_scripts.stages.common import Arguments, build_dir, publish, restore, run_stage

SPLITS = ("train", "evaluation")
Key = tuple[str, int, int]  # split, example id, sample number


def preference_dataset(args: Arguments[PreferenceDatasetSlice]) -> None:
    """Sample, score, rank and publish both splits."""
    if restore(args.out):
        return
    settings = args.settings
    teacher_folder, teacher = open_model(args.inputs["teacher"])
    corpus_folder, corpus_facts = open_artefact(args.inputs["corpus"], "corpus")
    tokenizer = load_tokenizer(corpus_folder / "tokenizer")
    questions = read_questions(corpus_folder, settings)
    prompts = [
        Prompt(
            (split, example, sample),
            prompt_tokens(tokenizer, question),
            prompt_seed(settings.generation.seed, example, sample),
        )
        for (split, example), question in questions.items()
        for sample in range(settings.samples_per_prompt)
    ]
    prompt_ids = {prompt.key[:2]: prompt.input_ids for prompt in prompts}
    bulk = Path(settings.dpo_preference_dataset_path).expanduser() if settings.dpo_preference_dataset_path else None
    build = build_dir(args.out, bulk, "preference_dataset")
    model = load_model(teacher_folder, compute_dtype(settings.dtype), settings.attn_implementation)
    with Progress("generated", total=len(prompts) * settings.generation.max_new_tokens) as progress:
        samples = sample_and_score(model, prompts, settings, tokenizer, progress)
        facts: dict[str, Any] = {"teacher": teacher["name"], "tokenizer_sha256": corpus_facts["tokenizer_sha256"]}
        used = 0
        for split in SPLITS:
            pairs, rejected = rank_split(split, questions, prompt_ids, samples, settings)
            corpus.write_table(build / f"{split}.parquet", pairs)
            facts[split] = {"pairs": len(pairs), "rejected": dict(rejected)}
            used += sum(pair["chosen_tokens"] + pair["rejected_tokens"] for pair in pairs)
        progress.add(discarded=sum(len(s.token_ids) for s in samples.values()) - used)
        progress.metrics = {split: facts[split] for split in SPLITS}
    publish(build, args.out, "preference_dataset", facts, bulk)


def rank_split(
    split: str,
    questions: dict[tuple[str, int], corpus.Messages],
    prompt_ids: dict[tuple[str, int], list[int]],
    samples: dict[Key, preference.Sample],
    settings: PreferenceDatasetSlice,
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Pairs of one split and the dropped prompts by reason. Raises CorpusError when no pair is left."""
    rejected: Counter[str] = Counter()
    pairs = []
    for (part, example), prompt in questions.items():
        if part != split:
            continue
        ranked = preference.rank(
            [samples[part, example, n] for n in range(settings.samples_per_prompt)],
            settings.judge_labeling.scoring_method,
            settings.judge_labeling.min_margin,
            settings.keep_truncated,
            rejected,
        )
        if ranked:
            pairs.append(pair_row(example, prompt, prompt_ids[part, example], *ranked, settings))
    if not pairs:
        raise corpus.CorpusError(
            f"dpo: no {split} pair is left, dropped: {dict(rejected)}: raise dpo.{split}_prompts "
            "or dpo.generation.max_new_tokens"
        )
    return pairs, rejected


def read_questions(corpus_folder: Path, settings: PreferenceDatasetSlice) -> dict[tuple[str, int], corpus.Messages]:
    """Prompts of both splits: (split, example id) -> conversation up to the last user turn."""
    questions: dict[tuple[str, int], corpus.Messages] = {}
    for split, count in zip(SPLITS, (settings.train_prompts, settings.evaluation_prompts), strict=True):
        rows = corpus.read_table(corpus_folder / f"{split}.parquet")
        found = [(row["example_id"], prompt) for row in rows if (prompt := corpus.prompt_of(row["messages"]))]
        questions.update({(split, example): prompt for example, prompt in found[:count]})
    return questions


def sample_and_score(
    model: Any, prompts: list[Prompt], settings: PreferenceDatasetSlice, tokenizer: Any, progress: Progress
) -> dict[Key, preference.Sample]:
    """All samples with the judge's log-likelihood, taking finished ones from the state folder."""
    journal = state_dir() / "samples.jsonl"
    samples = read_journal(journal)
    if samples:
        lengths = {prompt.key: len(prompt.input_ids) for prompt in prompts}
        tokens = {key: len(sample.token_ids) for key, sample in samples.items()}
        read = sum(lengths[key] + count for key, count in tokens.items())
        progress.resume(examples=len(samples), generated=sum(tokens.values()), input=read)
        print(f"{len(samples)} samples are there from earlier attempts", flush=True)
    by_key = {prompt.key: prompt for prompt in prompts}
    todo = [prompt for prompt in prompts if prompt.key not in samples]
    end = [tokenizer.eos_token_id]
    replace_lines(journal, [journal_line(key, sample) for key, sample in samples.items()])
    with journal.open("a", encoding="utf-8") as handle:
        for answers in generate(model, todo, settings.generation, end, tokenizer.pad_token_id):
            ended = [a.token_ids + ([] if a.truncated else end) for a in answers]
            rows = [scoring_row(by_key[a.key], a, completion) for a, completion in zip(answers, ended, strict=True)]
            for batch in by_length(rows, settings.generation.batch_size, lambda row: len(row["input_ids"])):
                for row, likelihood in zip(batch, log_likelihoods(model, batch, tokenizer.pad_token_id), strict=True):
                    key, answer = row["key"], row["answer"]
                    text = tokenizer.decode(answer.token_ids, skip_special_tokens=True)
                    sample = preference.Sample(text, row["completion"], answer.truncated, by_key[key].seed, likelihood)
                    samples[key] = sample
                    handle.write(journal_line(key, sample))
                progress.add(input=sum(len(row["input_ids"]) for row in batch))
            handle.flush()
            progress.add(examples=len(answers), generated=sum(answer.generated for answer in answers))
            progress.saved()
    return samples


def scoring_row(prompt: Prompt, answer: Answer, completion: list[int]) -> dict[str, Any]:
    """A row for the judge: the prompt that was really used, loss on the completion."""
    return {
        "key": prompt.key,
        "answer": answer,
        "completion": completion,
        "input_ids": prompt.input_ids + completion,
        "loss_mask": [0] * len(prompt.input_ids) + [1] * len(completion),
    }


def journal_line(key: Key, sample: preference.Sample) -> str:
    """One finished sample."""
    return json.dumps({"key": key, "sample": vars(sample)}) + "\n"


def read_journal(journal: Path) -> dict[Key, preference.Sample]:
    """Samples of earlier attempts; a line cut by a kill is left out."""
    samples: dict[Key, preference.Sample] = {}
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else []:
        try:
            content = json.loads(line)
        except json.JSONDecodeError:
            print("a line of samples.jsonl was cut by a kill: its prompt is sampled again", flush=True)
            continue
        split, example, number = content["key"]
        samples[split, example, number] = preference.Sample(**content["sample"])
    return samples


def pair_row(
    example: int,
    prompt: corpus.Messages,
    prompt_ids: list[int],
    best: preference.Sample,
    worst: preference.Sample,
    settings: PreferenceDatasetSlice,
) -> dict[str, Any]:
    """One row of the preference data set."""
    method = settings.judge_labeling.scoring_method
    return {
        "example_id": example,
        "prompt": prompt,
        "prompt_ids": prompt_ids,
        "chosen_ids": best.token_ids,
        "rejected_ids": worst.token_ids,
        "chosen": [{"role": "assistant", "content": best.text}],
        "rejected": [{"role": "assistant", "content": worst.text}],
        "chosen_score": preference.score(best, method),
        "rejected_score": preference.score(worst, method),
        "chosen_seed": best.seed,
        "rejected_seed": worst.seed,
        "chosen_tokens": len(best.token_ids),
        "rejected_tokens": len(worst.token_ids),
    }


if __name__ == "__main__":
    run_stage(preference_dataset, PreferenceDatasetSlice, ["teacher", "corpus"])
