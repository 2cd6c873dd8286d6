"""merge_pairs: rank the samples of all parts of preference_dataset and publish the pairs.

python -m workflow_scripts.stages.merge_pairs --settings JSON --teacher MANIFEST --corpus MANIFEST [--judge MANIFEST]
    --parts MANIFEST … --out MANIFEST

Writes train.parquet and evaluation.parquet in TRL's conversational preference format: prompt, chosen, rejected as message
lists, with their tokens, scores, seeds and lengths beside them. Evaluation pairs come from held-out prompts.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from workflow_scripts.artefact import inherited, open_artefact, read_json
from workflow_scripts.distill import corpus, preference
from workflow_scripts.progress import Progress
from workflow_scripts.settings.dpo import Dpo
from workflow_scripts.stages.runtime.common import Arguments, build_dir, publish, run_stage
from workflow_scripts.stages.runtime.units import Units, unit_count

SPLITS = ("train", "evaluation")


def merge_pairs(args: Arguments) -> None:
    """Rank and publish both splits."""
    settings = args.settings.dpo
    teacher = read_json(args.inputs["teacher"])
    corpus_folder, corpus_facts = open_artefact(args.inputs["corpus"], "corpus")
    named = args.settings.dpo_preference_dataset_path
    bulk = Path(named).expanduser() if named else None
    build = build_dir(args.out, bulk, "preference_dataset")
    facts: dict[str, Any] = {"teacher": teacher["name"], "tokenizer_sha256": corpus_facts["tokenizer_sha256"]}
    if settings.judge_labeling.scoring_method == "judge":
        facts["judge"] = read_json(args.inputs.get("judge", args.inputs["teacher"]))["name"]
    with Progress("generated") as progress:
        units = Units(unit_count(args.parts)).all(args.parts, progress)
        samples = {tuple(row["key"]): row for unit in units for row in unit["samples"]}
        used = 0
        for split, count in zip(SPLITS, (settings.train_prompts, settings.evaluation_prompts), strict=True):
            pairs, rejected = rank_split(split, corpus.questions(corpus_folder, split, count), samples, settings)
            corpus.write_table(build / f"{split}.parquet", pairs)
            facts[split] = {"pairs": len(pairs), "rejected": dict(rejected)}
            used += sum(pair["chosen_tokens"] + pair["rejected_tokens"] for pair in pairs)
        progress.add(discarded=sum(len(row["token_ids"]) for row in samples.values()) - used)
        progress.metrics = {split: facts[split] for split in SPLITS}
    publish(build, args.out, "preference_dataset", facts | inherited(args.inputs.values()), bulk)


def rank_split(
    split: str,
    questions: dict[int, corpus.Messages],
    samples: dict[tuple[str, int, int], dict[str, Any]],
    settings: Dpo,
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Pairs of one split and the dropped prompts by reason. Raises CorpusError when no pair is left."""
    rejected: Counter[str] = Counter()
    pairs = []
    for example, prompt in questions.items():
        if (split, example, 0) not in samples:  # every unit is whole, so this one was never asked
            rejected["prompt_too_long"] += 1
            continue
        rows = [samples[split, example, n] for n in range(settings.samples_per_prompt)]
        ranked = preference.rank(
            [preference.Sample(**{key: row[key] for key in preference.FIELDS if key in row}) for row in rows],
            settings.judge_labeling.scoring_method,
            settings.judge_labeling.min_margin,
            settings.keep_truncated,
            rejected,
        )
        if ranked:
            pairs.append(pair_row(example, prompt, rows[0]["prompt_ids"], *ranked, settings))
    if not pairs:
        remedy = f"raise dpo.{split}_prompts or dpo.generation.max_new_tokens"
        if settings.judge_labeling.scoring_method == "judge":
            remedy += ", name another judge_model, or choose likelihood_mean as scoring_method"
        raise corpus.CorpusError(f"dpo: no {split} pair is left, dropped: {dict(rejected)}: {remedy}")
    return pairs, rejected


def pair_row(
    example: int,
    prompt: corpus.Messages,
    prompt_ids: list[int],
    best: preference.Sample,
    worst: preference.Sample,
    settings: Dpo,
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
        "chosen_truncated": best.truncated,
        "rejected_truncated": worst.truncated,
        "chosen_seed": best.seed,
        "rejected_seed": worst.seed,
        "chosen_tokens": len(best.token_ids),
        "rejected_tokens": len(worst.token_ids),
    }


if __name__ == "__main__":
    run_stage(merge_pairs, ["teacher", "corpus", "judge?"], parts=True)
