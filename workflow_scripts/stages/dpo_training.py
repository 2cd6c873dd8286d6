"""dpo_training: direct preference optimisation of a policy on teacher-ranked pairs.

    python -m workflow_scripts.stages.dpo_training --settings JSON --policy MANIFEST --preferences MANIFEST
        --corpus MANIFEST --name NAME [--wandb JSON] --out MANIFEST

The reference is the initial policy; its log-probabilities are computed once, inside the stage, and kept in the state
folder, so that a resumed attempt does not pay for them again.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from workflow_scripts.artefact import inherited, open_artefact
from workflow_scripts.distill import corpus, training
from workflow_scripts.distill.adapters import add_adapters
from workflow_scripts.distill.arguments import arguments, check_optimizer
from workflow_scripts.distill.budget import EnergyBudget, EvaluationGrid
from workflow_scripts.distill.models import check_context, load_model, load_tokenizer, model_facts, open_model
from workflow_scripts.distill.order import training_order, with_batch_tokens
from workflow_scripts.distill.parallel import die_with_launcher, is_main, world_size
from workflow_scripts.distill.preference_training import PreferenceTrainer, dpo_options
from workflow_scripts.distill.work import ExampleWork, WorkCallback, work_per_step
from workflow_scripts.progress import Progress, state_dir
from workflow_scripts.stages.runtime.common import Arguments, build_dir, publish, restore, run_stage
from workflow_scripts.stages.runtime.tracking import clear_checkpoints, link_checkpoints, start_tracking

COLUMNS = ["prompt_ids", "chosen_ids", "rejected_ids"]


def dpo_training(args: Arguments) -> None:
    """Train to the token budget (chosen + rejected tokens) and publish the policy."""
    die_with_launcher()
    checkpoints = link_checkpoints(args.out)
    if restore(args.out):
        return
    settings, options = args.settings, args.settings.training
    check_optimizer(options.optimizer)
    pairs_folder, made = open_artefact(args.inputs["preferences"], "preference_dataset")
    policy_folder, policy = open_model(args.inputs["policy"])
    corpus_folder, facts = open_artefact(args.inputs["corpus"], "corpus")
    tokenizer = load_tokenizer(corpus_folder / "tokenizer")
    other = tokenizer if made["tokenizer_sha256"] != facts["tokenizer_sha256"] else None
    pairs = read_pairs(pairs_folder, made, "train", other)
    lengths = [len(p) + max(len(c), len(r)) for p, c, r in zip(*(pairs[name] for name in COLUMNS), strict=True)]
    check_context(policy, max(lengths), "the longest pair", "data.max_sequence_length or dpo.generation.max_new_tokens")
    run, log_interval = start_tracking(args.extra["wandb"], args.content)
    counts = list(zip(pairs["chosen_tokens"], pairs["rejected_tokens"], strict=True))
    tokens = [chosen + rejected for chosen, rejected in counts]
    options = with_batch_tokens(options, tokens, world_size())
    longest = [len(prompt) + max(count) for prompt, count in zip(pairs["prompt_ids"], counts, strict=True)]
    limits = options.token_budget, options.max_epochs, options.batch_size
    order = training_order(tokens, longest, *limits, settings.experiment.seed)
    if world_size() > 1:  # every process needs as many pairs: the last, short batch is filled from the beginning
        order += (order * options.batch_size)[: -len(order) % options.batch_size]
    step_count = math.ceil(len(order) / (options.batch_size * options.gradient_accumulation_steps))
    own = dpo_options(settings.dpo.beta, settings.dpo.loss_type)
    model = load_model(policy_folder, torch.float32, settings.model.attn_implementation)
    if options.lora:
        add_adapters(model, options.lora, settings.experiment.seed)
    if options.compile:
        training.compile_layers(model, state_dir() / "compiled")
    held_out = None
    if options.evaluated:
        held_out = read_pairs(pairs_folder, made, "evaluation", other)
    pairs = pairs.select_columns(COLUMNS)
    work = [pair_work(row) for row in pairs]
    share = options.batch_size // world_size()
    steps = work_per_step(order, work, share, options.gradient_accumulation_steps * world_size())
    planned = sum(step.loss for step in steps)
    with Progress("loss", total=planned, phase="start") as progress:
        trainer = PreferenceTrainer(
            model=model,
            args=arguments(options, settings.experiment.seed, step_count, checkpoints, log_interval, **own),
            train_dataset=pairs,
            eval_dataset=held_out.select_columns(COLUMNS) if held_out else None,
            processing_class=tokenizer,
            order=order,
            progress=progress,
        )
        progress.warnings += training.uneven_steps(options, steps)
        by_the_meter = EnergyBudget.of(options), EvaluationGrid.of(options)
        callback = WorkCallback(progress, steps, run.training, training.ended_by(options, planned), *by_the_meter)
        progress.metrics = training.run(trainer, callback, checkpoints)
    weights = training.full_weights(trainer)
    if not is_main():
        return
    build = build_dir(args.out)
    training.write_model(trainer, build, weights, policy["name"])
    tokenizer.save_pretrained(build)
    published = model_facts(build) | inherited(args.inputs.values())
    publish(build, args.out, "model", {"name": args.extra["name"], "source": "trained", **published})
    clear_checkpoints(checkpoints, options.keep_checkpoints)
    run.finish()  # last: the model does not wait for its tracking, nor depend on it


def read_pairs(folder: Path, made: dict[str, Any], split: str, tokenizer: Any | None) -> Any:
    """Pairs of one split, cached in the state folder; with a `tokenizer` they are tokenised for it.

    Raises CorpusError when none is left.
    """
    pairs = corpus.read_dataset(folder / f"{split}.parquet", state_dir() / "datasets")
    if tokenizer is None:
        return pairs
    found = [{**row, **ids} for row in pairs if (ids := corpus.tokenise_pair(tokenizer, row))]
    print(f"{len(found)} of {len(pairs)} {split} pairs tokenised for the student", flush=True)
    if not found:
        raise corpus.CorpusError(
            "dpo: the student's chat template refuses every pair: choose another model.student_chat_template"
        )
    path = state_dir() / f"{made['files'][f'{split}.parquet']['sha256'][:16]}.parquet"
    corpus.write_table(path, found)
    return corpus.read_dataset(path, state_dir() / "datasets")


def pair_work(row: dict[str, Any]) -> ExampleWork:
    """Work of one tokenised pair: loss on both completions, the prompt forwarded twice."""
    prompt, chosen, rejected = (len(row[f"{part}_ids"]) for part in ("prompt", "chosen", "rejected"))
    return ExampleWork(chosen + rejected, (prompt + chosen, prompt + rejected))


if __name__ == "__main__":
    run_stage(dpo_training, ["policy", "preferences", "corpus"], ["name", "wandb"])
