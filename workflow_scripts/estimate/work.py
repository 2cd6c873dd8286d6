"""How much work a stage is: one entry of WORK per stage, read by the forecast and by the memory estimate alike.

Dense decoders: a forward pass takes 2 FLOPs per parameter and token, a training step 6 (Kaplan et al. 2020, 2.1), 2 less with
adapters, as frozen weights need no gradient, and 2 more where activations are computed again. Attention over the context adds
context / (6 x hidden size) of that, 7 % for 256 tokens at hidden size 576, and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from workflow_scripts.estimate.artefacts import ANSWERED, Artefacts, Split, data_kind
from workflow_scripts.estimate.history import Past, setting
from workflow_scripts.estimate.pricing import ZERO, Range, UnpricedError

FORWARD, TRAINED = 2.0, 6.0
# Stated where no past record tells: input tokens per loss token.
INPUT_PER_LOSS = Range(1.2, 2.5, 8.0)
PAIRS = Range(1.0, 2.0, 10.0)  # tokens of an evaluation with held-out pairs, by those of the held-out rows alone
JUDGE_TOKENS = 60.0  # of the judge's question beside conversation and answers
TASKS = ("lm_eval_tasks", "lm_eval_limit", "lm_eval_num_fewshot")  # what the work of the harness's tasks depends on


@dataclass(frozen=True)
class Task:
    """A stage to estimate: its settings, its inputs by argument name, their sizes, and past stages of the same name."""

    stage: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    sizes: Artefacts
    past: Sequence[Past] = ()
    own: float | None = None  # parameters of the model that it has made, known afterwards

    def get(self, key: str) -> Any:
        """A setting by its dotted key. Raises UnpricedError where the stage does not name it."""
        value = setting(self.settings, key)
        if value is None:
            raise UnpricedError(f"its {key} is not known")
        return value

    def input(self, name: str) -> str:
        """An input by its argument name. Raises UnpricedError where the stage has none."""
        if name not in self.inputs:
            raise UnpricedError(f"its {name} is not known")
        return self.inputs[name]

    def split(self, name: str) -> Split:
        """A split of its corpus."""
        return self.sizes.split(self.input("corpus"), name)

    def parameters(self, role: str) -> float:
        """Parameters of one of its models."""
        return self.own or self.sizes.parameters(self.input(role))


@dataclass(frozen=True)
class Pass:
    """A model that reads (and writes) tokens: FLOPs per parameter and token. A pass that writes nothing scores."""

    role: str
    per_input: float
    per_generated: float = 0.0


@dataclass(frozen=True)
class Work:
    """Expected counts of a stage as its record will have them; `unit` names the one that it is measured by.

    `rows` go through a model at once; `at_once` answers of `new` tokens at most are written at once.
    """

    unit: str | None = None
    input: Range = ZERO
    generated: Range = ZERO
    loss: Range = ZERO
    examples: float = 1.0
    rows: int = 1
    new: int = 0
    at_once: int = 0

    def tokens(self) -> Range | None:
        """The count that the stage is measured by; None without tokens."""
        found: Range | None = getattr(self, self.unit) if self.unit else None
        return found if found and found.high else None


@dataclass(frozen=True)
class StageWork:
    """`expect` says what a stage will do, `passes` with which models; without passes its work is counted in examples.

    `holds` are models that only take memory, where the stage has them as an input.
    """

    expect: Callable[[Task], Work]
    passes: tuple[Pass, ...] = ()
    holds: tuple[str, ...] = ()


def expected(task: Task) -> Work:
    """Work that a planned stage will do: one job where WORK has no entry. Raises UnpricedError when it cannot be known."""
    return WORK[task.stage].expect(task) if task.stage in WORK else Work()


def amount(task: Task, work: Work) -> Range:
    """Work in FLOPs, else in examples; a model in two roles works in the first. Raises UnpricedError without its size."""
    passes = WORK[task.stage].passes if task.stage in WORK else ()
    if not passes:
        return Range.exactly(work.examples)
    trains = passes[0].per_input >= TRAINED
    again = FORWARD if trains and setting(task.settings, "training.gradient_checkpointing") else 0.0
    again -= FORWARD if trains and setting(task.settings, "training.lora") else 0.0
    by_model = {task.input(p.role): p for p in reversed(passes)}
    flops = ZERO
    for p in by_model.values():
        flops += (work.input * (p.per_input + again) + work.generated * p.per_generated) * task.parameters(p.role)
    return flops


def done(past: Past, sizes: Artefacts) -> float:
    """Work that a past stage has done, as `amount` counts it."""
    stage, counts = past.record.stage_id, past.record.work
    task = Task(stage, past.settings, past.inputs, sizes, own=past.parameters)
    work = Work(input=Range.exactly(float(counts.input or 0)), generated=Range.exactly(float(counts.generated or 0)))
    return amount(task, work if stage in WORK and WORK[stage].passes else expected(task)).mid


def _preprocess(task: Task) -> Work:
    return Work(examples=float(task.get("data.train_examples") + task.get("data.evaluation_examples")))


def _logit_caching(task: Task) -> Work:
    train = task.split("train")
    return Work("loss", train.input_tokens, loss=train.loss_tokens, rows=task.get("distillation.batch_size"))


def _generation(task: Task, section: str, limit: str) -> Work:
    """An answer to each prompt of the training rows, as many as the setting `limit` says."""
    if setting(task.settings, f"{section}.use_existing"):
        return Work("generated")
    train = task.split("train")
    prompts = float(min(train.examples, task.get(f"{section}.{limit}")))
    return _answers(task, f"{section}.generation", prompts, train.prompt_tokens * prompts)


def _preference_dataset(task: Task) -> Work:
    """Each sample is generated, then scored in another forward pass: both read (or write) prompt and answer.

    What another judge reads counts as if the teacher read it.
    """
    samples, read = 0.0, ZERO
    for name in ("train", "evaluation"):
        split = task.split(name)
        own = float(min(split.examples, task.get(f"dpo.{name}_prompts")) * task.get("dpo.samples_per_prompt"))
        samples, read = samples + own, read + split.prompt_tokens * own
    work = _answers(task, "dpo.generation", samples, read)
    done = work.input + work.generated
    if setting(task.settings, "dpo.judge_labeling.scoring_method") == "judge":  # each sees every other one in both orders
        others = float(task.get("dpo.samples_per_prompt") - 1)
        done = done + (work.input + work.generated * 2.0 + Range.exactly(samples * JUDGE_TOKENS)) * others
    return replace(work, input=done)


def _answers(task: Task, section: str, answers: float, read: Range) -> Work:
    """Answers of a generation section: what past answers used of max_new_tokens, else ANSWERED."""
    new, rows = task.get(f"{section}.max_new_tokens"), task.get(f"{section}.batch_size")
    shares = [
        p.record.work.generated / (p.record.work.examples * limit)
        for p in task.past
        if p.record.work.generated and p.record.work.examples and (limit := setting(p.settings, f"{section}.max_new_tokens"))
    ]
    generated = Range.seen(shares, ANSWERED) * (answers * new)
    return Work("generated", read, generated, examples=answers, rows=rows, new=new, at_once=rows)


def _training(task: Task, rows: int = 1) -> Work:
    """A training of `rows` sequences per example; the token budget or the epochs end it, whichever comes first."""
    per_epoch, ratio = task.sizes.epoch(task.inputs)
    loss = Range.exactly(float(task.get("training.token_budget")))
    if (epochs := setting(task.settings, "training.max_epochs")) and per_epoch:
        loss = loss.at_most(per_epoch * float(epochs))
    kind = data_kind(task.inputs)
    like = [p.record.work for p in task.past if data_kind(p.inputs) == kind]
    ratio = ratio or Range.seen([w.input / w.loss for w in like if w.input and w.loss], INPUT_PER_LOSS)
    return Work("loss", loss * ratio, loss=loss, rows=rows * task.get("training.batch_size"))


def _evaluation(task: Task) -> Work:
    """Model and teacher over the held-out rows and generation; with preferences the held-out pairs as well."""
    asked, past = task.get("evaluation"), [p for p in task.past if setting(p.settings, "evaluation")]
    alike = [[setting(p.settings, f"evaluation.{key}") for key in TASKS] for p in past]
    if asked.get("lm_eval_tasks") and [asked.get(key) for key in TASKS] not in alike:
        raise UnpricedError("the work of its evaluation.lm_eval_tasks is not known before an evaluation has run them once")
    held_out = task.split("evaluation")
    tokens = held_out.input_tokens
    if "preferences" in task.inputs:
        tokens = tokens * Range.seen([ratio for p in past if (ratio := _with_pairs(p, task.sizes))], PAIRS)
    seconds = asked.get("generation_seconds", 0.0)
    shares = [
        p.record.work.generated / _longest(before, before["generation_prompts"])
        for p in past
        if (before := p.settings["evaluation"]).get("generation_seconds", 0.0) == seconds and p.record.work.generated
    ]
    stated = Range(ANSWERED.low, ANSWERED.mid, ANSWERED.high * (20 if seconds else 1))  # rounds fill `generation_seconds`
    prompts = int(min(asked["generation_prompts"], held_out.examples))
    new = asked["max_new_tokens"]
    generated = Range.seen(shares, stated) * float(_longest(asked, prompts))
    rows = task.get("evaluation.batch_size")
    return Work("input", tokens, generated, examples=prompts, rows=rows, new=new, at_once=prompts)


def _longest(asked: Mapping[str, Any], prompts: int) -> int:
    """Tokens that an evaluation generates when every answer is as long as it may be, each once."""
    return int(prompts * asked["max_new_tokens"] + asked.get("instruction_prompts", 0) * asked.get("instruction_new_tokens", 0))


def _with_pairs(past: Past, sizes: Artefacts) -> float | None:
    """Tokens of a past evaluation with pairs, by those of its held-out rows; None where they are not known."""
    tokens = past.record.work.input if "preferences" in past.inputs else None
    with suppress(UnpricedError):
        return tokens / sizes.split(past.inputs["corpus"], "evaluation").input_tokens.mid if tokens else None
    return None


WORK = {
    "preprocess": StageWork(_preprocess),
    "logit_caching": StageWork(_logit_caching, (Pass("teacher", FORWARD),)),
    "synthetic_generation": StageWork(
        lambda task: _generation(task, "synthetic_data", "max_gen_examples"), (Pass("teacher", FORWARD, FORWARD),)
    ),
    "preference_dataset": StageWork(_preference_dataset, (Pass("teacher", 2 * FORWARD),), ("judge",)),  # writes, then scores
    "rollout": StageWork(lambda task: _generation(task, "opd", "prompts_per_round"), (Pass("student", FORWARD, FORWARD),)),
    "student_train": StageWork(_training, (Pass("student", TRAINED),)),
    "dpo_training": StageWork(lambda task: _training(task, rows=2), (Pass("policy", TRAINED + FORWARD),)),  # and its reference
    "evaluation": StageWork(_evaluation, (Pass("model", FORWARD, FORWARD), Pass("teacher", FORWARD)), ("reference",)),
}
