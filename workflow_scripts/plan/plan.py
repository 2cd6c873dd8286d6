"""From settings to the jobs of the DAG: which artefacts exist, where, from which slice and which inputs.

Writes nothing, imports no torch, and reads of the results only into how many parts a finished artefact was split. The rules
look their wildcards up here. Artefacts that several experiments can share (models, corpus, teacher output, reference
evaluations) are named by a hash of all that determines them, so equal settings meet in one job.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from workflow_scripts.plan import slices
from workflow_scripts.plan.names import digest, files_at, files_of, named_model, task_files, template_files
from workflow_scripts.settings import Experiments, Settings, SettingsError
from workflow_scripts.settings.load import followers
from workflow_scripts.settings.sources import PrunedModel, RandomModel

TEACHER_STAGE = {"kd": "logit_caching", "sft": "synthetic_generation", "dpo": "preference_dataset"}
TEACHER_FOLDER = {
    "logit_caching": "logit_cache",
    "synthetic_generation": "synthetic_dataset",
    "preference_dataset": "preference_dataset",
}


@dataclass(frozen=True)
class Job:
    """One run of a stage: its settings (canonical JSON) and its input manifests by argument name."""

    settings: str
    inputs: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)  # what the settings name on disk: its content decides, too


@dataclass(frozen=True)
class ExperimentPlan:
    """Everything the rules need of one experiment."""

    settings: Settings
    training: Job
    evaluation: Job
    shared: dict[str, str]  # stage name in the summary -> record file outside the experiment
    references: dict[str, str]  # student | teacher -> evaluation.json of the untrained model
    final: str  # manifest of the trained model
    check: str  # proof that teacher and student share the vocabulary
    training_stage: str


class Plan:
    """All jobs of a campaign. Raises SettingsError when two experiments claim one path for different things.

    An experiment that nothing asks for gives way to those that are compared: it is in `set_aside`, with the reason, and so
    are those that start from its policy.
    """

    def __init__(self, experiments: Experiments) -> None:
        self.output = next(iter(experiments.values())).output
        self.models: dict[str, Job] = {}
        self.corpora: dict[str, Job] = {}
        self.teacher: dict[str, dict[str, Job]] = {stage: {} for stage in TEACHER_FOLDER}
        self.references: dict[str, Job] = {}
        self.experiments: dict[str, ExperimentPlan] = {}
        self._settings = experiments
        self._claims: dict[str, str] = {}
        self.set_aside = dict(experiments.set_aside)
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
        self.prerun = Job(slices.canonical(slices.PrerunSlice.of(some)))
        self.host_kind = some.hardware.host_kind
        self.energy = slices.canonical(some.energy)
        self.comparison = some.comparison
        self.scatter = some.scatter
        self.sharing = self._count_sharing()

    def _plan_experiment(self, name: str, settings: Settings) -> ExperimentPlan:
        teacher = self._model(settings.model.teacher, settings)
        student = self._model(settings.model.student, settings)
        models = {"teacher": self.model_manifest(teacher), "student": self.model_manifest(student)}
        corpus = self._corpus(settings, teacher)
        stage = TEACHER_STAGE.get(settings.pipeline)
        artefact = self._teacher(stage, settings, corpus, teacher) if stage else None
        shared = {
            "prepare_model_teacher": self.model_record(teacher),
            "prepare_model_student": self.model_record(student),
            "prerun": f"{self.output.root}/prerun/{settings.hardware.host_kind}/stages/prerun.json",
            "preprocess": f"{self.output.root}/corpus/{corpus}/stages/preprocess.json",
        }
        if stage and artefact:
            in_summary = "logit_caching" if stage == "logit_caching" else "teacher_generation"
            shared[in_summary] = f"{self.output.root}/teacher/{artefact}/stages/{stage}.json"
        final = self.final_manifest(name)
        evaluation = slices.canonical(slices.EvaluationSlice.of(settings))
        inputs = {"corpus": self.corpus_manifest(corpus), "teacher": models["teacher"]}
        if stage == "preference_dataset" and artefact:
            inputs["preferences"] = self.teacher_manifest(stage, artefact)
            inputs["reference"] = self._start(settings, models)
        return ExperimentPlan(
            settings=settings,
            training=self._training(settings, models, corpus, stage, artefact),
            evaluation=Job(evaluation, {"model": final, **inputs}, task_files(settings)),
            shared=shared,
            references={
                "student": self._reference(settings, student, corpus, models["teacher"]),
                "teacher": self._reference(settings, teacher, corpus, models["teacher"]),
            },
            final=final,
            check=f"{self.output.root}/models/{student}/checks/{teacher}.json",
            training_stage="dpo_training" if settings.pipeline == "dpo" else "student_train",
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
        job = Job(slices.canonical(slices.PrepareModelSlice(name=key, source=source)), inputs, files)
        self._claim(f"{self.output.root}/models/{key}", job.settings, f"models.{name}")
        self.models[key] = job
        return key

    def _corpus(self, settings: Settings, teacher: str) -> str:
        """The corpus is tokenised with the teacher's vocabulary, so students of one family share it and all that follows."""
        text = slices.canonical(slices.PreprocessSlice.of(settings))
        artefact = f"{settings.data.dataset_choice}-{digest(text, self._identity(teacher))}"
        source = settings.data.datasets[settings.data.dataset_choice]
        files = files_at(source.dataset_path) if source.dataset_path else []
        self.corpora[artefact] = Job(text, {"teacher": self.model_manifest(teacher)}, files + template_files(settings))
        return artefact

    def _teacher(self, stage: str, settings: Settings, corpus: str, teacher: str) -> str:
        cut = {
            "logit_caching": slices.LogitCachingSlice.of,
            "synthetic_generation": slices.SyntheticGenerationSlice.of,
            "preference_dataset": slices.PreferenceDatasetSlice.of,
        }[stage](settings)
        text = slices.canonical(cut)
        artefact = f"{TEACHER_FOLDER[stage]}-{digest(text, corpus, self._identity(teacher))}"
        bulk = {
            "logit_caching": settings.distillation.logprob_cache_path,
            "synthetic_generation": settings.synthetic_data.synthetic_dataset_path,
            "preference_dataset": settings.dpo_preference_dataset_path,
        }[stage]
        if bulk is not None:
            self._claim(bulk, artefact, f"the folder of {stage}")
        inputs = {"corpus": self.corpus_manifest(corpus), "teacher": self.model_manifest(teacher)}
        self.teacher[stage][artefact] = Job(text, inputs)
        return artefact

    def _reference(self, settings: Settings, model: str, corpus: str, teacher: str) -> str:
        cut = slices.EvaluationSlice.of(settings).model_copy(update={"dpo_beta": None})
        text = slices.canonical(cut)
        artefact = f"{model}-{digest(text, corpus, teacher, self._identity(model))}"
        inputs = {"model": self.model_manifest(model), "corpus": self.corpus_manifest(corpus), "teacher": teacher}
        self.references[artefact] = Job(text, inputs, task_files(settings))
        return f"{self.output.root}/reference/{artefact}/evaluation.json"

    def _training(
        self, settings: Settings, models: dict[str, str], corpus: str, stage: str | None, artefact: str | None
    ) -> Job:
        start = self._start(settings, models)
        data = self.teacher_manifest(stage, artefact) if stage and artefact else None
        if settings.pipeline == "dpo" and data:
            inputs = {"policy": start, "preferences": data, "corpus": self.corpus_manifest(corpus)}
            return Job(slices.canonical(slices.DpoTrainingSlice.of(settings)), inputs)
        inputs = {"student": start, "corpus": self.corpus_manifest(corpus)}
        if data:
            inputs["teacher_output"] = data
        if stage == "logit_caching":
            inputs["teacher"] = models["teacher"]
        return Job(slices.canonical(slices.StudentTrainSlice.of(settings)), inputs)

    def _start(self, settings: Settings, models: dict[str, str]) -> str:
        policy = settings.model.policy
        return self.final_manifest(policy) if policy else models["student"]

    def _identity(self, key: str) -> str:
        job = self.models[key]
        parents = [self._identity(Path(path).parts[-3]) for path in job.inputs.values()]
        return "\n".join([job.settings, *parents])

    def _claim(self, path: str, owner: str, what: str) -> None:
        if self._claims.setdefault(path, owner) != owner:
            raise SettingsError(f"{what}: {path} is claimed by two experiments with different settings: give each its own")

    def _count_sharing(self) -> dict[str, list[str]]:
        """Map each shared record file to the compared experiments that use it."""
        users: dict[str, list[str]] = {}
        compared = next(iter(self._settings.values())).comparison.experiments
        for name in compared:
            for record in set(self.experiments[name].shared.values()):
                users.setdefault(record, []).append(name)
        return users

    # ---- what the rules pass on

    def wandb(self, name: str) -> str:
        """W&B settings of an experiment, JSON."""
        return slices.canonical(slices.WandbSlice.of(self._settings[name], name))

    def launcher(self, name: str) -> list[str]:
        """What starts a training: Python itself, or the launcher of several processes."""
        training = self._settings[name].training
        if training.num_nodes * training.num_processes == 1:
            return ["python"]
        sizes = [f"--nodes={training.num_nodes}", f"--processes={training.num_processes}"]
        return ["python", "-m", "workflow_scripts.cluster.launch", *sizes, "--"]

    def nodes(self, name: str) -> int:
        """Nodes of a training's Slurm job."""
        return self._settings[name].training.num_nodes

    def processes(self, name: str) -> int:
        """Processes of a training over all nodes; on GPUs one each."""
        return self.nodes(name) * self._settings[name].training.num_processes

    def sharded(self, name: str) -> bool:
        """Whether a training shards its parameters over its processes."""
        return self._settings[name].training.fsdp

    def pipeline(self, name: str) -> str:
        """Pipeline of an experiment."""
        return self._settings[name].pipeline

    def resolved(self, name: str) -> str:
        """The whole validated configuration of an experiment, JSON."""
        return slices.canonical(self._settings[name])

    def comparison_options(self) -> list[str]:
        """Arguments of the comparison."""
        baseline = ["--baseline", self.comparison.baseline] if self.comparison.baseline else []
        return ["--quality", self.comparison.quality, *baseline]

    def summary_plan(self, name: str, prerun: str) -> str:
        """What the summary of an experiment adds up, JSON."""
        plan = self.experiments[name]
        policy = plan.settings.model.policy
        record_dir = self.output.record_dir().format(experiment=name)
        teacher = [path for key, path in plan.training.inputs.items() if key in ("teacher_output", "preferences")]
        content = {
            "experiment": name,
            "pipeline": plan.settings.pipeline,
            "training_stage": plan.training_stage,
            "shared": plan.shared,
            "own": {stage: f"{record_dir}/stages/{stage}.json" for stage in (plan.training_stage, "evaluation")},
            "evaluation": f"{self.output.experiment_dir().format(experiment=name)}/evaluation.json",
            "references": plan.references,
            "sharing": {stage: self.sharing.get(record, [name]) for stage, record in plan.shared.items()},
            "comparable": comparable(plan.settings),
            "lineage": f"{self.output.record_dir().format(experiment=policy)}/experiment_summary.json" if policy else None,
            "teacher_manifest": teacher[0] if teacher else None,
            "output_dir": self.output.experiment_dir().format(experiment=name),
            "prerun": prerun,
        }
        return json.dumps(content, sort_keys=True)

    def forecast_options(self, name: str) -> list[str]:
        """Arguments of the summary: where a forecast is, and marks of the settings that it must have been made for, JSON.

        Records of shared artefacts but models need no mark: their paths name their settings.
        """
        plan = self.experiments[name]
        record_dir = self.output.record_dir().format(experiment=name)
        models = {self.model_record(key): job for key, job in self.models.items()}
        jobs = {path: models[path] for path in plan.shared.values() if path in models}
        jobs[f"{record_dir}/stages/{plan.training_stage}.json"] = plan.training
        jobs[f"{record_dir}/stages/evaluation.json"] = plan.evaluation
        marks = {path: slices.settings_mark(job.settings) for path, job in jobs.items()}
        return ["--forecast", f"{self.output.root}/forecast.json", "--forecast-settings", json.dumps(marks, sort_keys=True)]

    def summary_inputs(self, name: str) -> list[str]:
        """Files that the summary of an experiment reads."""
        plan = json.loads(self.summary_plan(name, ""))
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
        return f"{self.output.root}/teacher/{artefact}/{TEACHER_FOLDER[stage]}/manifest.json"

    def parts(self, stage: str, artefact: str) -> list[str]:
        """Manifests of the parts that a teacher artefact is merged from.

        A finished artefact keeps the number of parts that it was made in, so that another `scatter` reruns nothing; a data set
        that is adopted has none. This looks at the merged record and nothing else on disk.
        """
        settings = json.loads(self.teacher[stage][artefact].settings)
        if settings.get("data", {}).get("use_existing"):
            return []
        folder = f"{self.output.root}/teacher/{artefact}"
        count: int = getattr(self.scatter, stage)
        record = Path(f"{folder}/stages/{stage}.json")
        if Path(self.teacher_manifest(stage, artefact)).is_file() and record.is_file():
            with contextlib.suppress(json.JSONDecodeError):
                count = json.loads(record.read_text(encoding="utf-8")).get("parts") or count
        return [f"{folder}/parts/{stage}/{number}-of-{count}.json" for number in range(1, count + 1)]

    def final_manifest(self, name: str) -> str:
        """Manifest of an experiment's trained model."""
        folder = "final_policy" if self._settings[name].pipeline == "dpo" else "final_model"
        return f"{self.output.experiment_dir().format(experiment=name)}/{folder}/manifest.json"

    def finals(self, name: str) -> list[str]:
        """Manifest and model card of an experiment's trained model; with W&B the note that its final figures were logged."""
        note = f"{self.output.record_dir().format(experiment=name)}/wandb.json"
        card = str(Path(self.final_manifest(name)).with_name("README.md"))
        return [self.final_manifest(name), card, *([note] if self._settings[name].wandb.enabled else [])]

    def trained_to(self, folder: str) -> list[str]:
        """Experiments whose trained model lies in a folder of this name (final_model, final_policy)."""
        return [name for name in self.experiments if Path(self.final_manifest(name)).parent.name == folder]

    def teacher_targets(self, stage: str) -> list[str]:
        """Manifests of a teacher stage for the compared experiments."""
        compared = next(iter(self._settings.values())).comparison.experiments
        job_inputs = [self.experiments[name].training.inputs.values() for name in compared]
        known = {self.teacher_manifest(stage, artefact) for artefact in self.teacher[stage]}
        return sorted(known.intersection(path for inputs in job_inputs for path in inputs))


def comparable(settings: Settings) -> dict[str, object]:
    """What experiments that are compared should agree on; None where a pipeline has no such choice."""
    training = settings.training
    return {
        "seed": settings.experiment.seed,
        "starting model": settings.model.policy or settings.model.student,
        "optimizer": training.optimizer,
        "schedule": training.schedule_type,
        "token budget": training.token_budget,
        "effective batch": training.batch_size * training.gradient_accumulation_steps,
        "dtype": training.dtype,
        "energy budget [kWh]": training.energy_budget_kwh or "none",
        "packing": training.packing if settings.pipeline != "dpo" else None,
        "gradient checkpointing": training.gradient_checkpointing,
        "compilation": training.compile,
        "evaluation on the way, every [steps]": training.eval_steps or "never",
    }
