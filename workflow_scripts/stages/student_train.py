"""student_train: train the student by KD, on teacher-written text (sft) or on gold data (baseline).

python -m workflow_scripts.stages.student_train --settings JSON --student MANIFEST --corpus MANIFEST
    [--teacher_output MANIFEST] --name NAME [--wandb JSON] --out MANIFEST
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from workflow_scripts.artefact import LOGIT_FORMATS, inherited, open_artefact, read_json
from workflow_scripts.distill import training
from workflow_scripts.distill.adapters import add_adapters
from workflow_scripts.distill.arguments import arguments, check_optimizer
from workflow_scripts.distill.budget import EnergyBudget, EvaluationGrid
from workflow_scripts.distill.corpus import CorpusError, loss_tokens, read_table, tokenise_answer
from workflow_scripts.distill.logit_cache import LogitCache
from workflow_scripts.distill.losses import KdLoss
from workflow_scripts.distill.models import check_context, load_model, load_tokenizer, model_facts, open_model
from workflow_scripts.distill.order import training_order, with_batch_tokens
from workflow_scripts.distill.packing import attention_for
from workflow_scripts.distill.parallel import die_with_launcher, is_main, world_size
from workflow_scripts.distill.work import ExampleWork, WorkCallback, work_per_step
from workflow_scripts.progress import Progress, state_dir
from workflow_scripts.stages.runtime.common import Arguments, build_dir, publish, restore, run_stage
from workflow_scripts.stages.runtime.tracking import clear_checkpoints, link_checkpoints, start_tracking


def student_train(args: Arguments) -> None:
    """Train to the token budget and publish a Hugging Face folder."""
    die_with_launcher()
    checkpoints = link_checkpoints(args.out)
    if restore(args.out):
        return
    settings, options = args.settings, args.settings.training
    check_optimizer(options.optimizer)
    corpus_folder, corpus = open_artefact(args.inputs["corpus"], "corpus")
    student_folder, student = open_model(args.inputs["student"])
    rows, cache = training_data(args, corpus_folder, corpus)
    check_context(student, max(len(row["input_ids"]) for row in rows), "the longest row", "data.max_sequence_length")
    work = [ExampleWork(loss_tokens(row), (len(row["input_ids"]),)) for row in rows]
    tokens = [w.loss for w in work]
    options = with_batch_tokens(options, tokens, world_size())
    limits = options.token_budget, options.max_epochs, options.batch_size
    order = training_order(tokens, [w.lengths[0] for w in work], *limits, settings.experiment.seed)
    share = options.batch_size // world_size()
    steps = work_per_step(order, work, share, options.gradient_accumulation_steps * world_size(), options.packing)
    run, log_interval = start_tracking(args.extra["wandb"], args.content)
    tokenizer = load_tokenizer(corpus_folder / "tokenizer")
    attention = attention_for(settings.model.attn_implementation, options.packing, student_folder)
    model = load_model(student_folder, torch.float32, attention)
    if options.lora:
        add_adapters(model, options.lora, settings.experiment.seed)
    if options.compile:
        training.compile_layers(model, state_dir() / "compiled")
    planned = sum(step.loss for step in steps)
    with Progress("loss", total=planned, phase="start") as progress:
        progress.warnings += training.uneven_steps(options, steps)
        by_the_meter = EnergyBudget.of(options), EvaluationGrid.of(options)
        callback = WorkCallback(progress, steps, run.training, training.ended_by(options, planned), *by_the_meter)
        evaluation = read_table(corpus_folder / "evaluation.parquet") if options.evaluated else []
        held_out = training.whole_batches(range(len(rows), len(rows) + len(evaluation)), options.batch_size, training.FILLER)
        trainer = training.DistillationTrainer(
            model=model,
            args=arguments(options, settings.experiment.seed, len(steps), checkpoints, log_interval),
            train_dataset=training.row_numbers([*range(len(rows)), training.FILLER]),
            eval_dataset=training.row_numbers(held_out) if evaluation else None,
            processing_class=tokenizer,
            data_collator=training.Collator(
                rows,
                evaluation,
                tokenizer.pad_token_id,
                cache,
                settings.distillation.temperature if cache else 1.0,
                options.packing,
            ),
            order=training.whole_batches(order, options.batch_size, len(rows)),
            kd=KdLoss.of(settings.distillation, getattr(settings, "opd", None)) if cache else None,
        )
        progress.metrics = training.run(trainer, callback, checkpoints)
    weights = training.full_weights(trainer)
    if not is_main():
        return
    build = build_dir(args.out)
    training.write_model(trainer, build, weights, student["name"])
    tokenizer.save_pretrained(build)
    facts = model_facts(build) | inherited(args.inputs.values())
    publish(build, args.out, "model", {"name": args.extra["name"], "source": "trained", **facts})
    clear_checkpoints(checkpoints, options.keep_checkpoints)
    run.finish()  # last: the model does not wait for its tracking, nor depend on it


def training_data(
    args: Arguments, corpus_folder: Path, corpus: dict[str, Any]
) -> tuple[list[dict[str, Any]], LogitCache | None]:
    """Rows to train on, by the kind of what the teacher made: its text, or the corpus with its logits; the corpus without."""
    made = args.inputs.get("teacher_output")
    if made is None:
        return read_table(corpus_folder / "train.parquet"), None
    kind = read_json(made)["kind"]
    folder, facts = open_artefact(made, kind)
    if kind != "logit_cache":
        rows = read_table(folder / "train.parquet")
        if facts["tokenizer_sha256"] != corpus["tokenizer_sha256"]:
            rows = tokenise_for(load_tokenizer(corpus_folder / "tokenizer"), rows)
        return rows, None
    cache = LogitCache(folder, facts)
    cache.check(cache_facts(args, corpus), args.settings.distillation.temperature)
    return read_table(corpus_folder / "train.parquet"), cache


def tokenise_for(tokenizer: Any, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that another tokenizer's teacher wrote, tokenised for the student.

    Raises CorpusError when its template refuses all.
    """
    found = []
    for row in rows:
        if tokens := tokenise_answer(
            tokenizer, row["messages"][:-1], row["messages"][-1]["content"], row.get("truncated", False)
        ):
            mask = [0] * len(tokens[0]) + [1] * len(tokens[1])
            found.append(row | {"input_ids": tokens[0] + tokens[1], "loss_mask": mask})
    if not found:
        raise CorpusError("the student's chat template refuses every answer: choose another model.student_chat_template")
    print(f"{len(found)} of {len(rows)} answers tokenised for the student", flush=True)
    return found


def cache_facts(args: Arguments, corpus: dict[str, Any]) -> dict[str, Any]:
    """What the manifest of the logit cache must say."""
    distillation = args.settings.distillation
    expected = {name: corpus[name] for name in ("corpus_sha256", "tokenizer_sha256")}
    expected["teacher_weights_sha256"] = read_json(args.inputs["teacher"])["weights_sha256"]
    expected["format"] = LOGIT_FORMATS[distillation.sampling]
    if distillation.sampling == "top_k":
        return expected | {"k": distillation.top_k_logits}
    return expected | {"draws": distillation.sampling_draws, "seed": distillation.sampling_seed}


if __name__ == "__main__":
    run_stage(student_train, ["student", "corpus", "teacher_output?", "teacher?"], ["name", "wandb"])
