"""How much work a stage is: expected from its settings, done by its record. Both in the same driver.

Dense decoders: a forward pass takes 2 FLOPs per parameter and token, a training step 6 (Kaplan et al. 2020, 2.1). Attention
over the context adds context / (6 x hidden size) of that, 7 % for 256 tokens at hidden size 576, and is left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from workflow_scripts.estimate.artefacts import Artefacts, UnpricedError
from workflow_scripts.estimate.history import Past
from workflow_scripts.estimate.pricing import Range
from workflow_scripts.plan.dry_run import PlannedJob

FORWARD, TRAINED = 2.0, 6.0
# Stated where no past record tells: input tokens per loss token, and the share of max_new_tokens that an answer uses.
INPUT_PER_LOSS = Range(1.2, 2.5, 8.0)
ANSWERED = Range(0.2, 0.6, 1.0)
ADAPTED = ("student_train", "dpo_training")
GENERATING = ("synthetic_generation", "preference_dataset")
TASKS = ("lm_eval_tasks", "lm_eval_limit", "lm_eval_num_fewshot")  # what the work of the harness's tasks depends on


@dataclass(frozen=True)
class Work:
    """Work of one stage. `amount` counts FLOPs, examples or jobs; `tokens` are of the stage's unit."""

    driver: Literal["flops", "examples", "job"]
    amount: Range
    tokens: Range | None = None
    unit: str | None = None


def expected(job: PlannedJob, artefacts: Artefacts, history: Sequence[Past]) -> Work:
    """Work that a planned stage will do. Raises UnpricedError with the reason when it cannot be known."""
    estimate = _EXPECTED.get(job.name)
    return (
        estimate(job, artefacts, [p for p in history if p.stage == job.name]) if estimate else Work("job", Range.exactly(1.0))
    )


def done(past: Past, artefacts: Artefacts) -> float:
    """Work that a past stage has done, in the driver of its stage. Raises UnpricedError when its model is not known."""
    count = {kind: value or 0 for kind, value in past.work.items()}
    if past.stage in ADAPTED:
        passes = TRAINED if past.stage == "student_train" else TRAINED + FORWARD
        parameters = (past.published or {}).get("parameters") or artefacts.parameters(
            past.inputs["student" if past.stage == "student_train" else "policy"]
        )
        return passes * float(parameters) * count["input"]
    if past.stage == "preprocess":
        return float(past.settings["train_examples"] + past.settings["evaluation_examples"])
    if past.stage not in _EXPECTED:
        return 1.0
    if past.stage == "evaluation":
        mine, teacher = _evaluated(past.inputs, artefacts)
        return FORWARD * (mine * (count["input"] + count["generated"]) + teacher * count["input"])
    teacher = artefacts.parameters(past.inputs["teacher"])
    if past.stage == "synthetic_generation":
        return FORWARD * teacher * (count["input"] + count["generated"])
    return FORWARD * teacher * count["input"] * (2 if past.stage == "preference_dataset" else 1)


def _student_train(job: PlannedJob, artefacts: Artefacts, past: Sequence[Past]) -> Work:
    settings, inputs = job.settings, job.inputs()
    loss = Range.exactly(float(settings["training"]["token_budget"]))
    epochs = settings["training"]["max_epochs"]
    if settings["pipeline"] == "sft":
        ratio = _ratio(past, "input", "loss", INPUT_PER_LOSS, settings["pipeline"])
        facts = artefacts.facts(inputs["teacher_output"])
        per_epoch = Range.exactly(float(facts["loss_tokens"])) if facts and "loss_tokens" in facts else None
    else:
        train = artefacts.split(inputs["corpus"], "train")
        per_epoch = train.loss_tokens
        known = train.input_tokens.low == train.input_tokens.high
        stated = Range.exactly(train.input_tokens.mid / train.loss_tokens.mid)
        ratio = stated if known else _ratio(past, "input", "loss", INPUT_PER_LOSS, settings["pipeline"])
    if epochs is not None and per_epoch is not None:
        whole = per_epoch * float(epochs)
        loss = Range(
            *(min(a, b) for a, b in zip((loss.low, loss.mid, loss.high), (whole.low, whole.mid, whole.high), strict=True))
        )
    flops = loss * ratio * (TRAINED * artefacts.parameters(inputs["student"]))
    return Work("flops", flops, loss, "loss")


def _dpo_training(job: PlannedJob, artefacts: Artefacts, past: Sequence[Past]) -> Work:
    """Loss on chosen and rejected; the reference's forward pass comes on top of the training."""
    loss = Range.exactly(float(job.settings["training"]["token_budget"]))
    ratio = _ratio(past, "input", "loss", INPUT_PER_LOSS)
    parameters = artefacts.parameters(job.inputs()["policy"])
    return Work("flops", loss * ratio * ((TRAINED + FORWARD) * parameters), loss, "loss")


def _logit_caching(job: PlannedJob, artefacts: Artefacts, past: Sequence[Past]) -> Work:
    train = artefacts.split(job.inputs()["corpus"], "train")
    parameters = artefacts.parameters(job.inputs()["teacher"])
    return Work("flops", train.input_tokens * (FORWARD * parameters), train.loss_tokens, "loss")


def _synthetic_generation(job: PlannedJob, artefacts: Artefacts, past: Sequence[Past]) -> Work:
    data = job.settings["data"]
    if data["use_existing"]:
        return Work("job", Range.exactly(1.0))
    train = artefacts.split(job.inputs()["corpus"], "train")
    prompts = float(min(train.examples, data["max_gen_examples"]))
    answers = _answered(past, lambda p: p.settings["data"]["generation"]) * (prompts * data["generation"]["max_new_tokens"])
    parameters = artefacts.parameters(job.inputs()["teacher"])
    return Work("flops", (train.prompt_tokens() * prompts + answers) * (FORWARD * parameters), answers, "generated")


def _preference_dataset(job: PlannedJob, artefacts: Artefacts, past: Sequence[Past]) -> Work:
    """Each sample is generated, then scored in another forward pass over prompt and answer."""
    settings = job.settings
    prompts, length = 0.0, Range.exactly(0.0)
    for name in ("train", "evaluation"):
        split = artefacts.split(job.inputs()["corpus"], name)
        own = float(min(split.examples, settings[f"{name}_prompts"]) * settings["samples_per_prompt"])
        prompts, length = prompts + own, length + split.prompt_tokens() * own
    answers = _answered(past, lambda p: p.settings["generation"]) * (prompts * settings["generation"]["max_new_tokens"])
    parameters = artefacts.parameters(job.inputs()["teacher"])
    return Work("flops", (length + answers) * (2 * FORWARD * parameters), answers, "generated")


def _evaluation(job: PlannedJob, artefacts: Artefacts, past: Sequence[Past]) -> Work:
    """Model and teacher over the held-out rows and generation; for dpo the held-out pairs as well."""
    options, inputs = job.settings["evaluation"], job.inputs()
    asked = [options.get(key) for key in TASKS]
    if options.get("lm_eval_tasks") and asked not in ([p.settings["evaluation"].get(key) for key in TASKS] for p in past):
        raise UnpricedError("the work of its evaluation.lm_eval_tasks is not known before an evaluation has run them once")
    held_out = artefacts.split(inputs["corpus"], "evaluation")
    tokens = held_out.input_tokens
    if "preferences" in inputs:
        like = [p for p in past if "preferences" in p.inputs and p.work["input"]]
        added = [
            p.work["input"] / artefacts.split(p.inputs["corpus"], "evaluation").input_tokens.mid  # type: ignore[operator]
            for p in like
            if artefacts.facts(p.inputs["corpus"])
        ]
        tokens = tokens * (Range(min(added), statistics.median(added), max(added)) if added else Range(1.0, 2.0, 10.0))
    prompts = float(min(options["generation_prompts"], held_out.examples))
    generated = _answers(past, options) * (prompts * options["max_new_tokens"])
    mine, teacher = _evaluated(inputs, artefacts)
    flops = (tokens + generated) * (FORWARD * mine) + tokens * (FORWARD * teacher)
    return Work("flops", flops, tokens, "input")


def _answers(past: Sequence[Past], options: dict[str, Any]) -> Range:
    """Generated tokens by those of one round of full answers: more than one where rounds fill `generation_seconds`."""
    seen = []
    for p in past:
        before, prompts = p.settings["evaluation"], p.settings["evaluation"]["generation_prompts"]
        alike = before.get("generation_seconds", 0.0) == options.get("generation_seconds", 0.0)
        if p.work["generated"] and alike:
            seen.append(p.work["generated"] / (prompts * before["max_new_tokens"]))
    if seen:
        return Range(min(seen), statistics.median(seen), max(seen))
    return ANSWERED if not options.get("generation_seconds") else Range(ANSWERED.low, ANSWERED.mid, 20 * ANSWERED.high)


def _preprocess(job: PlannedJob, artefacts: Artefacts, past: Sequence[Past]) -> Work:
    examples = job.settings["train_examples"] + job.settings["evaluation_examples"]
    return Work("examples", Range.exactly(float(examples)))


_EXPECTED: dict[str, Callable[[PlannedJob, Artefacts, Sequence[Past]], Work]] = {
    "student_train": _student_train,
    "dpo_training": _dpo_training,
    "logit_caching": _logit_caching,
    "synthetic_generation": _synthetic_generation,
    "preference_dataset": _preference_dataset,
    "evaluation": _evaluation,
    "preprocess": _preprocess,
}


def _evaluated(inputs: dict[str, str], artefacts: Artefacts) -> tuple[float, float]:
    """Parameters of the evaluated model, and of the teacher beside it; 0 when the teacher itself is evaluated."""
    same = inputs["model"] == inputs["teacher"]
    return artefacts.parameters(inputs["model"]), 0.0 if same else artefacts.parameters(inputs["teacher"])


def _answered(past: Sequence[Past], generation: Callable[[Past], dict[str, Any]]) -> Range:
    """Share of max_new_tokens that past answers used, else ANSWERED."""
    shares = [
        p.work["generated"] / (p.work["examples"] * generation(p)["max_new_tokens"])
        for p in past
        if p.work["generated"] and p.work["examples"]
    ]
    return Range(min(shares), statistics.median(shares), max(shares)) if shares else ANSWERED


def _ratio(past: Sequence[Past], above: str, below: str, stated: Range, pipeline: str | None = None) -> Range:
    """Ratio of two typed counts in past stages (of a pipeline), else the stated one."""
    like = [p for p in past if pipeline is None or p.settings.get("pipeline") == pipeline]
    ratios = [p.work[above] / p.work[below] for p in like if p.work[above] and p.work[below]]  # type: ignore[operator]
    return Range(min(ratios), statistics.median(ratios), max(ratios)) if ratios else stated
