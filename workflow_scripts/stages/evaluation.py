"""evaluation: one model on the held-out split that all models of a comparison share.

python -m workflow_scripts.stages.evaluation --settings JSON --model MANIFEST --corpus MANIFEST --teacher MANIFEST
    [--preferences MANIFEST --reference MANIFEST] --out evaluation.json
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from workflow_scripts.artefact import inherited, open_artefact, write_json
from workflow_scripts.distill import corpus, harness
from workflow_scripts.distill.batching import by_length
from workflow_scripts.distill.generation import Answer, Prompt, ends_of_turns, generate, prompt_tokens
from workflow_scripts.distill.instructions import KINDS, VERSION, instructions
from workflow_scripts.distill.models import (
    check_context,
    compute_dtype,
    load_frozen,
    load_tokenizer,
    open_model,
    vocabulary_size,
)
from workflow_scripts.distill.scoring import Agreement, agreements, log_likelihoods
from workflow_scripts.errors import UserError
from workflow_scripts.progress import Progress, attempt_seconds
from workflow_scripts.settings import Settings
from workflow_scripts.settings.evaluation import FOLLOWED, Evaluation
from workflow_scripts.settings.generation import Generation
from workflow_scripts.stages.runtime.common import Arguments, run_stage


class BrokenModel(UserError):
    """A model that gives NaN or infinity."""


INSTRUCTION = 64  # tokens that an instruction adds to a question, at most


def evaluation(args: Arguments) -> None:
    """Cross entropy on gold text, agreement with the teacher, generation speed, instructions, tasks; dpo: margins."""
    settings = args.settings
    tasks = harness.check(settings.evaluation)
    folder, model_facts = open_model(args.inputs["model"])
    teacher_folder, teacher_facts = open_model(args.inputs["teacher"])
    corpus_folder, corpus_facts = open_artefact(args.inputs["corpus"], "corpus")
    tokenizer = load_tokenizer(corpus_folder / "tokenizer")
    ends = ends_of_turns(model_facts, corpus_facts)
    dtype = compute_dtype(settings.training.dtype)
    model = load_frozen(folder, dtype, settings.model.attn_implementation)
    same = folder == teacher_folder
    one_vocabulary = teacher_facts["tokenizer_sha256"] == corpus_facts["tokenizer_sha256"]
    teacher = (
        model if same else load_frozen(teacher_folder, dtype, settings.model.attn_implementation) if one_vocabulary else None
    )
    rows = corpus.read_table(corpus_folder / "evaluation.parquet")
    longest = max(len(row["input_ids"]) for row in rows)
    check_context(model_facts, longest, "the longest held-out row", "data.max_sequence_length")
    context = min(facts["max_position_embeddings"] for facts in (model_facts, teacher_facts))  # both can answer what is asked
    sides: list[dict[str, Any]] = []
    if "preferences" in args.inputs:
        pairs, pair_facts = open_artefact(args.inputs["preferences"], "preference_dataset")
        sides = pair_sides(pairs, pair_facts, corpus_facts, tokenizer)
    with Progress("input", total=sum(len(row["input_ids"]) for row in [*rows, *sides])) as progress:
        found: dict[int, Agreement] = {}
        for members in by_length(list(enumerate(rows)), settings.evaluation.batch_size, lambda item: len(item[1]["input_ids"])):
            batch = [row for _, row in members]
            scored = agreements(model, teacher, batch, tokenizer.pad_token_id, vocabulary_size(tokenizer))
            found |= {index: row for (index, _), row in zip(members, scored, strict=True)}
            progress.add(
                examples=len(batch),
                loss=sum(corpus.loss_tokens(row) for row in batch),
                input=sum(len(row["input_ids"]) for row in batch),
            )
        by_row = [found[index] for index in range(len(rows))]
        tokens = sum(row.tokens for row in by_row)
        lost, apart = sum(row.negative_log_likelihood for row in by_row), sum(row.kl_to_teacher for row in by_row)
        for broken, value in ((folder, lost), (teacher_folder, apart)):
            if not math.isfinite(value):
                raise BrokenModel(f"{broken}: the model gives no finite numbers on the held-out rows: look at its weights")
        result: dict[str, Any] = {
            "model": model_facts["name"],
            "teacher": teacher_facts["name"],
            "split_sha256": corpus_facts["split_sha256"],
            "tokenizer_sha256": corpus_facts["tokenizer_sha256"],
            "examples": len(rows),
            "tokens": tokens,
            "cross_entropy": lost / tokens,
            "perplexity": math.exp(min(700.0, lost / tokens)),
            "bits_per_byte": lost / math.log(2) / answer_bytes(rows, tokenizer),
            "kl_to_teacher": apart / tokens if teacher is not None else None,
            "top1_agreement": sum(row.same_argmax for row in by_row) / tokens if teacher is not None else None,
            "no_agreement_because": None if teacher is not None else "the teacher has another tokenizer",
            "rows": {
                "tokens": [row.tokens for row in by_row],
                "cross_entropy": [round(row.negative_log_likelihood, 6) for row in by_row],
                "kl_to_teacher": [round(row.kl_to_teacher, 6) for row in by_row] if teacher is not None else None,
                "top1_agreement": [row.same_argmax for row in by_row] if teacher is not None else None,
            },
            "generation": generation_speed(model, rows, tokenizer, ends, settings, progress, context),
            "preference": None,
            "tasks": None,
        }
        metrics: dict[str, dict[str, object]] = {}
        if followed := follow(model, rows, tokenizer, ends, settings.evaluation, progress, context):
            result["rows"]["instructions"] = followed
            asked = f"{VERSION}, at most {settings.evaluation.instruction_new_tokens} new tokens"
            share = {"value": sum(followed) / len(followed), "higher_is_better": True, "examples": len(followed), "shots": 0}
            metrics[FOLLOWED] = share | {"version": asked}
        if "preferences" in args.inputs:
            reference_folder, _ = open_model(args.inputs["reference"])
            reference = load_frozen(reference_folder, dtype, settings.model.attn_implementation)
            result["preference"] = margins(model, reference, sides, tokenizer, settings, progress)
        progress.metrics = {k: v for k, v in result.items() if isinstance(v, float)}
        if tasks is not None:
            progress.phase("tasks")
            result["tasks"] = harness.run(model, tokenizer, ends, settings.evaluation, tasks)
            progress.phase("work")
            metrics |= result["tasks"]["metrics"]
        if metrics:
            result["tasks"] = (result["tasks"] or {}) | {"metrics": metrics}
            progress.metrics |= {name: entry["value"] for name, entry in metrics.items()}
    write_json(args.out, result | inherited(args.inputs.values()))


def generation_speed(
    model: Any,
    rows: list[dict[str, Any]],
    tokenizer: Any,
    ends: list[int],
    settings: Settings,
    progress: Progress,
    context: int,
) -> dict[str, Any]:
    """Greedy answers to held-out prompts: tokens, seconds, tokens/s, and the first answer to look at.

    The prompts are answered as often as `generation_seconds` asks for; a short answer before warms the device up and is not
    in the figures. `start_s` [s since the meter started this stage] lets the accounting find their joules in the power trace.
    """
    options = Generation(
        decoding_strategy="greedy",
        max_new_tokens=settings.evaluation.max_new_tokens,
        batch_size=settings.evaluation.generation_prompts,
    )
    prompts = []
    for row in rows[: settings.evaluation.generation_prompts]:
        question = corpus.prompt_of(row["messages"])
        tokens = prompt_tokens(tokenizer, question) if question else []
        if question and len(tokens) + options.max_new_tokens <= context:
            prompts.append(Prompt(row["example_id"], tokens, 0))
    if not prompts:
        return {"prompts": 0, "reason": "no held-out row has a user turn that fits the context"}

    def answer(options: Generation) -> list[Answer]:
        batches = generate(model, prompts, options, ends, tokenizer.pad_token_id)
        answers = [found for batch in batches for found in batch]
        progress.add(generated=sum(found.generated for found in answers))
        return answers

    before = progress.phase("generate")
    answer(options.model_copy(update={"max_new_tokens": 1}))
    start_s, started = attempt_seconds(), time.monotonic()
    answers, rounds = answer(options), 1
    while time.monotonic() - started < settings.evaluation.generation_seconds:
        answer(options)
        rounds += 1
    seconds = time.monotonic() - started
    progress.phase(before)
    generated = rounds * sum(found.generated for found in answers)
    return {
        "prompts": len(answers),
        "rounds": rounds,
        "generated_tokens": generated,
        "start_s": start_s,
        "seconds": seconds,
        "tokens_per_second": generated / seconds,
        "sample": tokenizer.decode(answers[0].token_ids, skip_special_tokens=True),
    }


def follow(
    model: Any,
    rows: list[dict[str, Any]],
    tokenizer: Any,
    ends: list[int],
    options: Evaluation,
    progress: Progress,
    context: int,
) -> list[int]:
    """Whether the greedy answers follow their instructions, 0 or 1 each; empty where no held-out row has a question that fits.

    The questions are those of the held-out rows, as often as it takes, each time with an instruction of another kind.
    """
    most = context - options.instruction_new_tokens - INSTRUCTION
    questions = [q for row in rows if (q := corpus.prompt_of(row["messages"])) and len(prompt_tokens(tokenizer, q)) <= most]
    if not questions or not options.instruction_prompts:
        return []
    wanted = instructions(options.instruction_prompts)
    asked = [each.put(questions[(number + number // KINDS) % len(questions)]) for number, each in enumerate(wanted)]
    prompts = [Prompt(number, prompt_tokens(tokenizer, question), 0) for number, question in enumerate(asked)]
    greedy = Generation(
        decoding_strategy="greedy", max_new_tokens=options.instruction_new_tokens, batch_size=options.batch_size
    )
    before = progress.phase("generate")
    followed = [0] * len(prompts)
    for batch in generate(model, prompts, greedy, ends, tokenizer.pad_token_id):
        for answer in batch:
            text = tokenizer.decode(answer.token_ids, skip_special_tokens=True)
            followed[answer.key] = int(wanted[answer.key].followed(text))
        progress.add(generated=sum(answer.generated for answer in batch))
    progress.phase(before)
    return followed


def answer_bytes(rows: list[dict[str, Any]], tokenizer: Any) -> int:
    """UTF-8 bytes of the text that carries loss: what bits are counted by, whatever the vocabulary. End tokens are no text."""
    answers = ([token for token, on in zip(row["input_ids"], row["loss_mask"], strict=True) if on] for row in rows)
    return sum(len(tokenizer.decode(tokens, skip_special_tokens=True).encode()) for tokens in answers)


def pair_sides(folder: Path, made: dict[str, Any], facts: dict[str, Any], tokenizer: Any) -> list[dict[str, Any]]:
    """Held-out pairs with token ids of the corpus's tokenizer, as rows: chosen, rejected, chosen of the next one."""
    pairs = corpus.read_table(folder / "evaluation.parquet")
    if made["tokenizer_sha256"] != facts["tokenizer_sha256"]:
        pairs = [row | ids for row in pairs if (ids := corpus.tokenise_pair(tokenizer, row))]
    return [
        {
            "input_ids": pair["prompt_ids"] + pair[f"{side}_ids"],
            "loss_mask": [0] * len(pair["prompt_ids"]) + [1] * len(pair[f"{side}_ids"]),
        }
        for pair in pairs
        for side in ("chosen", "rejected")
    ]


def margins(
    model: Any, reference: Any, rows: list[dict[str, Any]], tokenizer: Any, settings: Settings, progress: Progress
) -> dict[str, float]:
    """Implicit reward margin beta * ((log p - log p_ref)(chosen) - (log p - log p_ref)(rejected)) on the sides of pairs.

    Rafailov et al. 2023, eq. 6; per token of the answer where the loss was (`sigmoid_norm`). `accuracy` is the share of pairs
    with a positive margin.
    """
    rewards: list[float] = [0.0] * len(rows)
    numbered = list(enumerate(rows))
    for batch in by_length(numbered, settings.evaluation.batch_size, lambda item: len(item[1]["input_ids"])):
        tokens = [row for _, row in batch]
        mine = log_likelihoods(model, tokens, tokenizer.pad_token_id)
        theirs = log_likelihoods(reference, tokens, tokenizer.pad_token_id)
        for (index, _), policy, base in zip(batch, mine, theirs, strict=True):
            length = sum(rows[index]["loss_mask"]) if settings.dpo.loss_type == "sigmoid_norm" else 1
            rewards[index] = settings.dpo.beta * (policy - base) / length
        progress.add(input=sum(len(row["input_ids"]) for row in tokens))
    found = [chosen - rejected for chosen, rejected in zip(rewards[::2], rewards[1::2], strict=True)]
    return {
        "pairs": len(found),
        "mean_margin": sum(found) / len(found),
        "accuracy": sum(margin > 0 for margin in found) / len(found),
    }


if __name__ == "__main__":
    run_stage(evaluation, ["model", "corpus", "teacher", "preferences?", "reference?"])
