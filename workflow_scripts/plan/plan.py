"""From settings to the jobs of the DAG: which artefacts exist, where, from which slice and which inputs.

Writes nothing, imports no torch, and reads of the results only into how many parts a teacher's work was split. The rules look
their wildcards up here. Artefacts that several experiments can share (models, corpus, teacher output, reference evaluations)
are named by a hash of all that determines them, so equal settings meet in one job.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

from workflow_scripts.pipelines import PIPELINES, STAGES, TEACHER_STAGES, Split, Stage
from workflow_scripts.plan.jobs import ExperimentPlan, Job, TeacherArtefact, parts_of, seedless, turns
from workflow_scripts.plan.names import digest, files_at, files_of, named_model, one_tokenizer, task_files, template_files
from workflow_scripts.plan.rounds import plan_rounds, training_slice
from workflow_scripts.plan.slices import canonical, comparable, cut, settings_fingerprint, value_at
from workflow_scripts.settings import Experiments, Settings, SettingsError
from workflow_scripts.settings.load import first_student, followers
from workflow_scripts.settings.models import PrunedModel, RandomModel
from workflow_scripts.settings.schema import Training


class Plan:
    """All jobs of a campaign. Raises SettingsError when two experiments claim one path for different things.

    An experiment that nothing asks for gives way to those that are compared: it is in `set_aside`, with the reason, and so
    are those that start from its policy.
    """

    def __init__(self, experiments: Experiments) -> None:
        self.output = next(iter(experiments.values())).output
        self.models: dict[str, Job] = {}
        self.corpora: dict[str, Job] = {}
        self.teacher: dict[str, dict[str, TeacherArtefact]] = {stage: {} for stage in TEACHER_STAGES}
        self.references: dict[str, Job] = {}
        self.rounds: dict[str, Job] = {}  # trainings before the last round, by their artefact
        self.round_of: dict[str, str] = {}  # an experiment of theirs
        self.experiments: dict[str, ExperimentPlan] = {}
        self._settings = experiments
        self._claims: dict[str, str] = {}
        self.set_aside = dict(experiments.set_aside)
        self.targets = {**experiments.runs, **{name: [name] for name in (*experiments, *experiments.set_aside)}}
        self._methods = experiments.methods
        needed = experiments.needed()
        for name in sorted(experiments, key=lambda name: name not in needed):
            try:
                self.experiments[name] = self._plan_experiment(name, experiments[name])
            except SettingsError as error:
                if name in needed:
                    raise
                self.set_aside[name] = str(error)
        for name, why in followers(experiments, self.set_aside).items():
            self.set_aside[name] = why
            self.experiments.pop(name, None)
        some = next(iter(experiments.values()))
        self.prerun = Job(cut(some, STAGES["prerun"].reads))
        self.host_kind = some.hardware.host_kind
        self.energy = canonical(some.energy)
        self.comparison = some.comparison.model_copy(update={"experiments": experiments.compared()})
        named = self.targets[some.comparison.baseline] if some.comparison.baseline else []
        self.baselines = [next(runs) for _, runs in itertools.groupby(named, self._methods.get)]  # any run names its method
        self._check_sweeps()
        self._turns = turns(self.experiments, self._methods)
        self.scatter = some.scatter

    def _plan_experiment(self, name: str, settings: Settings) -> ExperimentPlan:
        pipeline = PIPELINES[settings.pipeline]
        teacher = self._model(settings.model.teacher, settings)
        student = self._model(settings.model.student, settings)
        models = {"teacher": self.model_manifest(teacher), "student": self.model_manifest(student)}
        corpus = self._corpus(settings, teacher)
        own = settings.model.student_chat_template is not None
        learnt = self._corpus(settings, student, corpus) if own else corpus
        one_tokenizer(settings)
        shared = {
            "prepare_model_teacher": self.model_record(teacher),
            "prepare_model_student": self.model_record(student),
            "prerun": f"{self.output.root}/prerun/{settings.hardware.host_kind}/stages/prerun.json",
            "preprocess": f"{self.output.root}/corpus/{corpus}/stages/preprocess.json",
        }
        if own:
            shared["preprocess_student"] = f"{self.output.root}/corpus/{learnt}/stages/preprocess.json"
        start = self.final_manifest(settings.model.policy) if settings.model.policy else models["student"]
        training = {pipeline.starts_with: start, "corpus": self.corpus_manifest(learnt)}
        evaluation = {"model": self.final_manifest(name), "corpus": self.corpus_manifest(learnt), "teacher": models["teacher"]}
        made_from = [corpus, learnt, self.identity(student)]
        if pipeline.in_rounds:
            made_from += plan_rounds(self, name, settings, training, shared, self.identity(student), teacher)
        elif pipeline.teacher:
            stage = STAGES[pipeline.teacher]
            inputs = {"corpus": self.corpus_manifest(corpus), "teacher": models["teacher"]}
            made_by = self.identity(teacher)
            if stage.judge and (named := stage.judge(settings)):
                judge = self._model(named, settings)
                inputs["judge"], shared["prepare_model_judge"] = self.model_manifest(judge), self.model_record(judge)
                made_by += f"\n{self.identity(judge)}"
            artefact = self.teacher_artefact(stage, settings, inputs, corpus, made_by)
            shared[stage.in_summary] = f"{self.output.root}/teacher/{artefact}/stages/{stage.name}.json"
            training[pipeline.teacher_output] = self.teacher_manifest(stage.name, artefact)
            made_from.append(seedless(self.teacher[stage.name][artefact].merge, settings))
            if pipeline.checks_teacher:
                training["teacher"] = models["teacher"]
            if pipeline.judged_on_pairs:
                evaluation |= {"preferences": training[pipeline.teacher_output], "reference": start}
        trained = Job(training_slice(settings), training)
        judged = Job(cut(settings, (*STAGES["evaluation"].reads, *pipeline.evaluates)), evaluation, task_files(settings))
        return ExperimentPlan(
            settings=settings,
            pipeline=pipeline,
            training=trained,
            evaluation=judged,
            shared=shared,
            references={
                "student": self._reference(settings, student, learnt, models["teacher"]),
                "teacher": self._reference(settings, teacher, corpus, models["teacher"]),
            },
            final=evaluation["model"],
            check=[] if own else [f"{self.output.root}/models/{student}/checks/{teacher}.json"],
            method=(settings.pipeline, *made_from, *(seedless(job, settings) for job in (trained, judged))),
        )

    # ---- runs

    def method(self, name: str) -> str:
        """Fingerprint of all that a run's result depends on, but for seeds and the measurement: equal for runs of one method.

        A starting policy counts by its own method, so that it may have another seed, too.
        """
        policy = self.experiments[name].settings.model.policy
        return digest(*self.experiments[name].method, *([self.method(policy)] if policy else []))

    def refusal(self, target: str) -> str | None:
        """Why the runs of a target cannot be had."""
        return next((self.set_aside[run] for run in self.targets[target] if run in self.set_aside), None)

    def priority(self, name: str | None) -> int:
        """Priority of the jobs of a run: the earlier its turn, the higher; what runs share (None) comes before all of them."""
        return len(self._turns) + 1 if name is None else len(self._turns) - self._turns[name]

    def _check_sweeps(self) -> None:
        swept = {target: runs for target, runs in self.targets.items() if len(runs) > 1}
        for target, runs in swept.items():
            found: dict[str, str] = {}
            for run in (run for run in runs if run in self.experiments):
                variant = self._methods[run]
                other = found.setdefault(self.method(run), variant)
                if other != variant:
                    raise SettingsError(
                        f"sweep.{target}: {other} and {variant} are equal, as pipeline {self.pipeline(run)} reads no key in "
                        "which they differ: leave that key out"
                    )

    # ---- models, corpus, teacher artefacts, references

    def _model(self, name: str, settings: Settings, made_from: tuple[str, ...] = ()) -> str:
        """Register the model called `name` in the settings; returns its key (safe as a path and in a shell).

        `made_from` is the chain of models that are made from it.
        """
        if name in made_from:
            raise SettingsError(f"models: {' <- '.join([*made_from, name])} goes in a circle")
        key, source = named_model(name, settings)
        inputs = {}
        if isinstance(source, PrunedModel):
            if source.of not in settings.models:
                raise SettingsError(f"models.{name}.of = {source.of!r} is not in `models`")
            inputs["parent"] = self.model_manifest(self._model(source.of, settings, (*made_from, name)))
        if isinstance(source, RandomModel) and source.tokenizer in settings.models:
            inputs["tokenizer"] = self.model_manifest(self._model(source.tokenizer, settings, (*made_from, name)))
        files = files_of(source) if "tokenizer" not in inputs else []
        job = Job({"models": {key: source.model_dump(mode="json")}}, inputs, files)
        self._claim(f"{self.output.root}/models/{key}", job.identity, f"models.{name}")
        self.models[key] = job
        return key

    def _corpus(self, settings: Settings, model: str, of: str | None = None) -> str:
        """The corpus has the teacher's vocabulary, so students of one family share it and all that follows.

        With `of`: the rows of that corpus for a student with a tokenizer of its own.
        """
        reads, choice = STAGES["preprocess"].reads, settings.model.student_chat_template if of else settings.model.chat_template
        content = (
            cut(settings, (*reads, "model.student_chat_template"), ("model.chat_template",)) if of else cut(settings, reads)
        )
        artefact = f"{settings.data.dataset_choice}-{digest(canonical(content), *([of] if of else []), self.identity(model))}"
        inputs = {"teacher": self.model_manifest(model), **({"corpus": self.corpus_manifest(of)} if of else {})}
        paths = () if of else settings.data.datasets[settings.data.dataset_choice].paths()
        files = [*(file for path in paths for file in files_at(path)), *template_files(str(choice))]
        self.corpora[artefact] = Job(content, inputs, files)
        return artefact

    def teacher_artefact(self, stage: Stage, settings: Settings, inputs: dict[str, str], corpus: str, model: str) -> str:
        """Register a stage that is split; `corpus` and `model` say what its inputs are. Returns its artefact's name."""
        split: Split = stage.split  # type: ignore[assignment]  # a teacher stage has one
        adopted = split.existing is not None and bool(value_at(settings, split.existing))
        bulk = value_at(settings, stage.location) if stage.location else None
        first = ("experiment.replicate",) if settings.experiment.replicate == 1 else ()
        parts = Job(cut(settings, stage.reads, first), inputs)
        merge = Job(cut(settings, (*stage.reads, *split.reads), first), inputs, files_at(bulk) if adopted and bulk else [])
        raw = f"{stage.name}-{digest(parts.identity, corpus, model)}"
        artefact = f"{stage.folder}-{digest(merge.identity, corpus, model)}"
        if bulk is not None:
            self._claim(bulk, artefact, f"the folder of {stage.name}")
        self.teacher[stage.name][artefact] = TeacherArtefact(raw, parts, merge, adopted)
        return artefact

    def _reference(self, settings: Settings, model: str, corpus: str, teacher: str) -> str:
        content = cut(settings, STAGES["evaluation"].reads)
        job = Job(
            content,
            {"model": self.model_manifest(model), "corpus": self.corpus_manifest(corpus), "teacher": teacher},
            task_files(settings),
        )
        artefact = f"{model}-{digest(job.identity, corpus, teacher, self.identity(model))}"
        self.references[artefact] = job
        return f"{self.output.root}/reference/{artefact}/evaluation.json"

    def identity(self, key: str) -> str:
        """What a model is made from."""
        job = self.models[key]
        parents = [self.identity(Path(path).parts[-3]) for path in job.inputs.values()]
        return "\n".join([job.identity, *parents])

    def _claim(self, path: str, owner: str, what: str) -> None:
        if self._claims.setdefault(path, owner) != owner:
            raise SettingsError(f"{what}: {path} is claimed by two experiments with different settings: give each its own")

    # ---- what the rules pass on

    def wandb(self, name: str) -> str:
        """W&B settings of an experiment and the folder that takes the files of its run, JSON."""
        settings = self._settings[name]
        folder = self.output.record_dir().format(experiment=name)
        choice = settings.wandb.model_dump(mode="json")
        of = {"experiment": name, "group": self._methods[name], "pipeline": settings.pipeline}
        return canonical({"wandb": choice, "folder": folder, **of})

    def _training(self, name: str) -> Training:
        return self._settings[self.round_of.get(name, name)].training

    def launcher(self, name: str) -> list[str]:
        """What starts a training (of an experiment or a round): Python itself, or the launcher of several processes."""
        training = self._training(name)
        if training.num_nodes * training.num_processes == 1:
            return ["python"]
        sizes = [f"--nodes={training.num_nodes}", f"--processes={training.num_processes}"]
        return ["python", "-m", "workflow_scripts.cluster.launch", *sizes, "--"]

    def nodes(self, name: str) -> int:
        """Nodes of a training's Slurm job."""
        return self._training(name).num_nodes

    def processes(self, name: str) -> int:
        """Processes of a training over all nodes; on GPUs one each."""
        return self.nodes(name) * self._training(name).num_processes

    def sharded(self, name: str) -> bool:
        """Whether a training shards its parameters over its processes."""
        return self._settings[name].training.fsdp

    def pipeline(self, name: str) -> str:
        """Pipeline of an experiment."""
        return self._settings[name].pipeline

    def trained_by(self, stage: str) -> list[str]:
        """Experiments with this training stage."""
        return [name for name, plan in self.experiments.items() if plan.pipeline.training == stage]

    def resolved(self, name: str) -> str:
        """The whole validated configuration of an experiment, JSON."""
        return canonical(self._settings[name])

    def comparison_job(self) -> Job:
        """What the comparison reads of the configuration."""
        return Job(cut(next(iter(self._settings.values())), STAGES["comparison"].reads))

    def comparison_options(self) -> list[str]:
        """Arguments of the comparison beside its summaries."""
        baseline = ["--baseline", *self.baselines] if self.baselines else []
        target = [] if self.comparison.target_quality is None else ["--target", str(self.comparison.target_quality)]
        return ["--quality", self.comparison.quality, *baseline, *target]

    def summary_job(self, name: str) -> Job:
        """What the summary states of the configuration."""
        return Job({"comparable": self._comparable(name)})

    def _comparable(self, name: str) -> dict[str, object]:
        settings = self.experiments[name].settings
        return comparable(settings, first_student(self._settings, name), self._methods.get(settings.model.policy or ""))

    def export_job(self, name: str) -> Job:
        """The words of the registry that card and reports use."""
        pipeline = self.experiments[name].pipeline
        return Job({"words": {"method": pipeline.sentence, "boamps": pipeline.boamps}})

    def summary_plan(self, name: str, prerun: str) -> dict[str, Any]:
        """What the summary of an experiment adds up."""
        plan = self.experiments[name]
        policy = plan.settings.model.policy
        record_dir = self.output.record_dir().format(experiment=name)
        training = plan.pipeline.training
        return {
            "experiment": name,
            "pipeline": plan.pipeline.name,
            "training_stage": training,
            "shared": plan.shared,
            "own": {stage: f"{record_dir}/stages/{stage}.json" for stage in (training, "evaluation")},
            "settings": {training: plan.training.deciding, "evaluation": plan.evaluation.deciding},
            "evaluation": f"{self.output.experiment_dir().format(experiment=name)}/evaluation.json",
            "references": plan.references,
            "comparable": self._comparable(name),
            "seedless_fingerprint": self.method(name),
            "lineage": f"{self.output.record_dir().format(experiment=policy)}/experiment_summary.json" if policy else None,
            "teacher_manifest": plan.training.inputs.get(plan.pipeline.teacher_output),
            "output_dir": self.output.experiment_dir().format(experiment=name),
            "prerun": prerun,
        }

    def forecast_options(self, name: str) -> list[str]:
        """Arguments of the summary: where a forecast is, and fingerprints of the settings that it must be for, JSON.

        Records of shared artefacts but models need no fingerprint: their paths name their settings.
        """
        plan = self.experiments[name]
        record_dir = self.output.record_dir().format(experiment=name)
        models = {self.model_record(key): job for key, job in self.models.items()}
        jobs = {path: models[path] for path in plan.shared.values() if path in models}
        jobs[f"{record_dir}/stages/{plan.pipeline.training}.json"] = plan.training
        jobs[f"{record_dir}/stages/evaluation.json"] = plan.evaluation
        fingerprints = {path: settings_fingerprint(job.identity) for path, job in jobs.items()}
        where = f"{self.output.root}/forecast.json"
        return ["--forecast", where, "--forecast-settings", json.dumps(fingerprints, sort_keys=True)]

    def summary_inputs(self, name: str) -> list[str]:
        """Files that the summary of an experiment reads."""
        plan = self.summary_plan(name, "")
        shared = {k: v for k, v in plan["shared"].items() if k != "prerun"}
        files = [*shared.values(), *plan["own"].values(), plan["evaluation"], *plan["references"].values()]
        return list(dict.fromkeys([*files, *([plan["lineage"]] if plan["lineage"] else [])]))

    # ---- paths

    def model_manifest(self, key: str) -> str:
        """Manifest of a prepared model."""
        return f"{self.output.root}/models/{key}/model/manifest.json"

    def model_record(self, key: str) -> str:
        """Stage record of a prepared model."""
        return f"{self.output.root}/models/{key}/stages/prepare_model.json"

    def corpus_manifest(self, artefact: str) -> str:
        """Manifest of a tokenised corpus."""
        return f"{self.output.root}/corpus/{artefact}/dataset/manifest.json"

    def teacher_manifest(self, stage: str, artefact: str) -> str:
        """Manifest of a teacher artefact."""
        return f"{self.output.root}/teacher/{artefact}/{STAGES[stage].folder}/manifest.json"

    def parts(self, stage: str, artefact: str) -> list[str]:
        """Manifests of the parts that a teacher artefact is merged from, each with its record `<part>.record.json`.

        Work that is done keeps the number of parts that it was done in, so that another `scatter` reruns nothing; a data set
        that is adopted has none. This looks at the parts and at the merged record, and at nothing else on disk.
        """
        planned = self.teacher[stage][artefact]
        if planned.adopted:
            return []
        count: int = getattr(self.scatter, stage)
        record = Path(f"{self.output.root}/teacher/{artefact}/stages/{stage}.json")
        folder = f"{self.output.root}/teacher/{planned.raw}/parts"
        there = [found[1] for path in Path(folder).glob("*-of-*.json") if (found := re.fullmatch(r"\d+-of-(\d+)", path.stem))]
        whole = [int(of) for of in set(there) if there.count(of) == int(of)]
        if whole:
            count = min(whole)
        elif record.is_file() and Path(self.teacher_manifest(stage, artefact)).is_file():
            count = parts_of(record) or count
        return [f"{folder}/{number}-of-{count}.json" for number in range(1, count + 1)]

    def final_manifest(self, name: str) -> str:
        """Manifest of an experiment's trained model."""
        folder = STAGES[PIPELINES[self._settings[name].pipeline].training].folder
        return f"{self.output.experiment_dir().format(experiment=name)}/{folder}/manifest.json"

    def finals(self, name: str) -> list[str]:
        """Manifest and model card of an experiment's trained model; with W&B the note that its final figures were logged."""
        note = f"{self.output.record_dir().format(experiment=name)}/wandb.json"
        card = str(Path(self.final_manifest(name)).with_name("README.md"))
        return [self.final_manifest(name), card, *([note] if self._settings[name].wandb.enabled else [])]

    def teacher_targets(self, stage: str) -> list[str]:
        """Manifests of a teacher stage for the compared experiments."""
        inputs = {path for name in self.comparison.experiments for path in self.experiments[name].training.inputs.values()}
        return sorted(inputs.intersection(self.teacher_manifest(stage, artefact) for artefact in self.teacher[stage]))
