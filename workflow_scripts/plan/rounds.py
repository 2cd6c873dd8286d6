"""Rounds of a pipeline that trains on its own text: rollouts, their scores, a training, and the same from there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workflow_scripts.pipelines import PIPELINES, STAGES, round_name
from workflow_scripts.plan.jobs import Job, seedless
from workflow_scripts.plan.names import digest
from workflow_scripts.plan.slices import Content, cut
from workflow_scripts.settings import Settings
from workflow_scripts.settings.runs import with_value

if TYPE_CHECKING:
    from workflow_scripts.plan.plan import Plan


def training_slice(settings: Settings) -> Content:
    """What a training reads; each of several rounds has its share of the budgets."""
    pipeline = PIPELINES[settings.pipeline]
    stage = STAGES[pipeline.training]
    content = cut(settings, (*stage.reads, *pipeline.reads), stage.ignores)
    if pipeline.in_rounds:
        budgets = content["training"]
        budgets["token_budget"] = max(1, budgets["token_budget"] // settings.opd.rounds)
        if budgets["energy_budget_kwh"]:
            budgets["energy_budget_kwh"] /= settings.opd.rounds
    return content


def plan_rounds(
    plan: Plan, name: str, settings: Settings, training: dict[str, str], shared: dict[str, str], student: str, teacher: str
) -> list[str]:
    """Register the rollouts of an experiment, their scores and the trainings but the last, whose inputs `training` gets.

    All are named by what they are made from, so that rounds of an equal beginning are made once; `shared` gets their records by
    their names in the summary. `student` is the identity of the student, `teacher` the key of the teacher. Returns what the
    rounds read.
    """
    pipeline, rollout = PIPELINES[settings.pipeline], STAGES["rollout"]
    scores, corpus, made_from = STAGES[str(pipeline.teacher)], training["corpus"], []
    policy, model = training[pipeline.starts_with], plan.model_manifest(teacher)
    identity = policy if settings.model.policy else student
    for number in range(settings.opd.rounds):
        own = with_value(settings, "opd.generation.seed", settings.opd.generation.seed + number)
        asked = {"corpus": corpus, "student": policy}
        written = plan.teacher_artefact(rollout, own, asked, corpus, identity)
        asked = {"corpus": plan.teacher_manifest(rollout.name, written), "teacher": model}
        path = settings.distillation.logprob_cache_path
        own = with_value(settings, "distillation.logprob_cache_path", path and f"{path}/{written}")  # one cache per round
        scored = plan.teacher_artefact(scores, own, asked, written, plan.identity(teacher))
        training |= {**asked, pipeline.starts_with: policy, pipeline.teacher_output: plan.teacher_manifest(scores.name, scored)}
        for stage, artefact in ((rollout, written), (scores, scored)):
            shared[round_name(stage.in_summary, number)] = f"{plan.output.root}/teacher/{artefact}/stages/{stage.name}.json"
            made_from.append(seedless(plan.teacher[stage.name][artefact].merge, settings))
        if number + 1 < settings.opd.rounds:
            job = Job(training_slice(settings), dict(training))
            folder = f"round-{digest(job.identity, scored, identity)}"
            plan.rounds[folder], plan.round_of[folder] = job, name
            root = f"{plan.output.root}/rounds/{folder}"
            policy = identity = f"{root}/{STAGES[pipeline.training].folder}/manifest.json"
            shared[f"{pipeline.training}_round{number + 1}"] = f"{root}/stages/{pipeline.training}.json"
    return made_from
