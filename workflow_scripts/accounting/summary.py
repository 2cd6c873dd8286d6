"""experiment_summary: all stage records of one experiment, added up by role.

    python -m workflow_scripts.accounting.summary --plan JSON --config JSON
        [--forecast FILE --forecast-settings JSON] --out experiment_summary.json

`--plan` names the records, the evaluation, the reference evaluations and the lineage; `--config` is the resolved
configuration for the snapshot; `--forecast` is set against the outcome where the file exists. Beside the summary it writes
run_config.yaml, environment.json, copies of the shared records under stages/ and of the prerun's result under
prerun_validation/. Built from the same records and forecast it is byte-equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field

from workflow_scripts.accounting.model import ExperimentSummary, Lineage, SummaryStage, sum_of
from workflow_scripts.accounting.prediction import ForecastRow, compare_forecast, read_forecast
from workflow_scripts.accounting.quality import Deployment, Evaluation
from workflow_scripts.accounting.traces import deployed_cost, intermediate_evaluations
from workflow_scripts.artefact import ArtefactError, read_json, write_json
from workflow_scripts.energy.documents import validated
from workflow_scripts.energy.model import Component, StageRecord, Total
from workflow_scripts.plan.slices import leaves, line

ADOPTED = "teacher_generation"  # the stage whose data set may have been made elsewhere


class SummaryPlan(BaseModel):
    """What a summary adds up: record files by stage name, `shared` ones of artefacts that others may use, and `own` ones.

    `settings` are those that the own ones have to be made with.
    """

    experiment: str
    pipeline: str
    training_stage: str
    shared: dict[str, Path]
    own: dict[str, Path]
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    evaluation: Path
    references: dict[str, Path] = Field(default_factory=dict)
    comparable: dict[str, Any] = Field(default_factory=dict)
    seedless_fingerprint: str | None = None  # equal for runs of one method
    lineage: Path | None = None
    teacher_manifest: Path | None = None
    output_dir: Path
    prerun: Path


def main() -> int:
    """Read the records, write summary and snapshots."""
    parser = argparse.ArgumentParser(prog="workflow_scripts.accounting.summary", allow_abbrev=False)
    for name in ("plan", "config", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--forecast")
    parser.add_argument("--forecast-settings", type=json.loads, default={})
    arguments = parser.parse_args()
    plan, config = SummaryPlan.model_validate_json(arguments.plan), json.loads(arguments.config)
    out = Path(arguments.out)
    try:
        summary = summarise(plan, config, read_forecast(arguments.forecast, arguments.forecast_settings))
        validation = read_json(plan.prerun)
    except ArtefactError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    content = summary.content()
    for stage in plan.shared:
        write_json(out.parent / "stages" / f"{stage}.json", content["stages"][stage])
    write_json(plan.output_dir / "prerun_validation" / "validation.json", validation)
    (out.parent / "run_config.yaml").write_text(yaml.safe_dump(config, sort_keys=True), encoding="utf-8")
    environment = {stage: record["provenance"] for stage, record in content["stages"].items()}
    write_json(out.parent / "environment.json", {**environment[plan.training_stage], "stages": environment})
    write_json(out, content)
    return 0


def summarise(plan: SummaryPlan, config: Mapping[str, Any], forecast: Mapping[str, ForecastRow]) -> ExperimentSummary:
    """The summary of one experiment. Raises ArtefactError for a file that cannot be read."""
    records = read_records(plan)
    evaluation = validated(Evaluation, read_json(plan.evaluation), plan.evaluation)
    references = {name: validated(Evaluation, read_json(path), path) for name, path in plan.references.items()}
    parent = ExperimentSummary.read(plan.lineage) if plan.lineage else None
    training = plan.training_stage
    return ExperimentSummary(
        experiment_id=f"{plan.experiment}-{fingerprint(config)}",
        experiment_name=plan.experiment,
        pipeline=plan.pipeline,
        description=config["experiment"]["description"],
        lineage=lineage(parent) if parent else None,
        forecast=compare_forecast(forecast, {stage: str(path) for stage, path in (plan.shared | plan.own).items()}, records),
        quality=evaluation,
        references=references,
        comparable=plan.comparable,
        config_fingerprint=fingerprint(config),
        seedless_fingerprint=plan.seedless_fingerprint,
        evaluations_on_the_way=intermediate_evaluations(records[training], plan.own[training]),
        deployment=deployment(plan, records, evaluation, references),
        stages={**(ancestors(parent, records) if parent else {}), **records},
    )


def read_records(plan: SummaryPlan) -> dict[str, SummaryStage]:
    """Stage records by their name in the summary; shared ones say of which file they are a copy. Raises ArtefactError."""
    records = {}
    for stage, path in (plan.shared | plan.own).items():
        copied = {"copied_from": str(path)} if stage in plan.shared else {}
        records[stage] = SummaryStage.read(path).model_copy(update={"stage_id": stage, "stage_name": stage, **copied})
    for stage, planned in plan.settings.items():
        if differences := changed(records[stage].provenance.settings, planned):
            raise ArtefactError(
                f"{plan.own[stage]}: made with {', '.join(differences)}: another run has written it meanwhile: run this again"
            )
    if plan.teacher_manifest and read_json(plan.teacher_manifest).get("adopted"):
        records[ADOPTED] = adopted_record(plan.teacher_manifest, records[ADOPTED])
    return records


def changed(made: Mapping[str, Any] | None, planned: Mapping[str, Any]) -> list[str]:
    """Settings of a record that are not as planned, `key=value instead of value`; a record of an earlier version has none."""
    if made is None:
        return []
    old, new = leaves(dict(made)), leaves(dict(planned))
    return [f"{line(k, old.get(k))} instead of {json.dumps(new.get(k))}" for k in sorted(old | new) if old.get(k) != new.get(k)]


def adopted_record(manifest: Path, adoption: SummaryStage) -> SummaryStage:
    """The record found beside an adopted data set, or one that says that its energy is unavailable."""
    facts = read_json(manifest)
    folder = Path(facts["path"])
    candidates = [folder / "stages" / "synthetic_generation.json", folder.parent / "stages" / "synthetic_generation.json"]
    if facts.get("published_by"):
        candidates.insert(0, Path(facts["published_by"]).parents[1] / "stages" / "synthetic_generation.json")
    for candidate in candidates:
        if candidate.is_file():
            same = adoption.model_dump(include={"stage_id", "stage_name", "copied_from"})
            return SummaryStage.read(candidate).model_copy(update=same)
    reason = f"the data set at {folder} was made elsewhere and no record lies beside it"
    nothing = {"joules": None, "energy_class": "unavailable", "reason": reason}
    scopes = {name: getattr(adoption.energy, name).scope for name in ("gpu", "cpu", "dram", "node")}
    parts = {name: Component(**nothing, method=None, scope=scope) for name, scope in scopes.items()}
    unknown = (
        *("total_energy_joules", "joules_per_token", "useful_j", "wasted_j", "above_idle_j"),
        *("gpu_energy_joules", "cpu_energy_joules", "codecarbon_energy_kwh", "codecarbon_emissions_kg"),
    )
    update = {
        **dict.fromkeys(unknown),
        "energy": adoption.energy.model_copy(update={**parts, "total": Total(**nothing, boundary=[])}),
        "carbon": adoption.carbon.model_copy(update={"grams": None, "reason": reason}),
        "warnings": [*adoption.warnings, reason],
    }
    return adoption.model_copy(update=update)


def lineage(parent: ExperimentSummary) -> Lineage:
    """What training a starting policy has cost: the used share of the teacher's stages and the student's, of all ancestors.

    Their prerun, data and evaluation stages are left out, and the evaluations inside the training: they are shared with this
    experiment or not needed for the policy.
    """
    teacher, student = parent.kept("teacher"), parent.training_energy
    teacher_kwh = teacher.kwh * parent.used_share if teacher else None
    before = [parent.lineage.total_energy_kwh] if parent.lineage else []
    parts = [*([teacher_kwh] if parent.of("teacher") else []), student.kwh if student else None, *before]
    return Lineage(
        policy=parent.experiment_name,
        student_kwh=student.kwh if student else None,
        teacher_kwh=teacher_kwh,
        total_energy_kwh=sum_of(parts),
    )


def ancestors(parent: ExperimentSummary, own: Collection[str] = ()) -> dict[str, SummaryStage]:
    """Training records that led to the starting policy, marked with `lineage`; they are in no total of this experiment.

    One that is called as one of its `own` has its experiment's name after it.
    """
    trainings = {name: stage for name, stage in parent.stages.items() if stage.role == "student"}
    named = {name: stage.lineage or parent.experiment_name for name, stage in trainings.items()}
    return {
        f"{name}_of_{named[name]}" if name in own else name: stage.model_copy(update={"lineage": named[name]})
        for name, stage in trainings.items()
    }


def deployment(
    plan: SummaryPlan, records: Mapping[str, StageRecord], evaluation: Evaluation, references: Mapping[str, Evaluation]
) -> dict[str, Deployment]:
    """Joules per generated token of the trained `model`, and of the reference models by the records of their evaluations."""
    found = {"model": deployed_cost(evaluation, records.get("evaluation"), plan.evaluation)}
    for name, path in plan.references.items():
        record = path.parent / "stages" / "evaluation.json"
        found[name] = deployed_cost(references[name], StageRecord.read(record) if record.is_file() else None, path)
    return found


def fingerprint(config: Mapping[str, Any]) -> str:
    """Short mark of a configuration."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


if __name__ == "__main__":
    sys.exit(main())
