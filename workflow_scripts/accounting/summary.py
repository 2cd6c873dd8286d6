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
from pathlib import Path
from typing import Any

import yaml

from workflow_scripts.accounting.deployment import deployed_cost
from workflow_scripts.accounting.evaluations import on_the_way
from workflow_scripts.accounting.model import ExperimentSummary, ForecastRow
from workflow_scripts.accounting.outcome import ForecastError, compare_forecast, read_forecast
from workflow_scripts.accounting.totals import added_up, sum_of
from workflow_scripts.artefact import ArtefactError, read_json, write_json

RECORD_SCHEMA = "energy-stage/1"
NO_SETTINGS = ("experiment", "wandb", "output", "comparison", "scatter")  # of the resolved configuration: change no result


class SummaryError(ValueError):
    """Records that cannot be summed."""


def main() -> int:
    """Read the records, write summary and snapshots."""
    parser = argparse.ArgumentParser(prog="workflow_scripts.accounting.summary", allow_abbrev=False)
    for name in ("plan", "config", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--forecast")
    parser.add_argument("--forecast-settings", type=json.loads, default={})
    arguments = parser.parse_args()
    plan, config, out = json.loads(arguments.plan), json.loads(arguments.config), Path(arguments.out)
    try:
        records = read_records(plan)
        forecast = read_forecast(arguments.forecast, arguments.forecast_settings)
        summary = summarise(plan, config, records, forecast).model_dump(mode="json", by_alias=True)
    except (SummaryError, ForecastError, ArtefactError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    stages = out.parent / "stages"
    for stage in plan["shared"]:
        write_json(stages / f"{stage}.json", summary["stages"][stage])
    write_json(Path(plan["output_dir"]) / "prerun_validation" / "validation.json", read_json(Path(plan["prerun"])))
    (out.parent / "run_config.yaml").write_text(yaml.safe_dump(config, sort_keys=True), encoding="utf-8")
    training = summary["stages"][plan["training_stage"]]
    environment = {stage: record["provenance"] for stage, record in summary["stages"].items()}
    write_json(out.parent / "environment.json", {**training["provenance"], "stages": environment})
    write_json(out, summary)
    return 0


def read_records(plan: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Stage records by their name in the summary. Raises SummaryError for an unknown schema."""
    records = {}
    for stage, path in {**plan["shared"], **plan["own"]}.items():
        record = read_json(Path(path))
        if record.get("schema") != RECORD_SCHEMA:
            raise SummaryError(f"{path}: schema {record.get('schema')!r}, this program reads {RECORD_SCHEMA}")
        records[stage] = record | {"stage_id": stage, "stage_name": stage, "shared_by": plan.get("sharing", {}).get(stage, [])}
    adopted = plan.get("teacher_manifest") and read_json(Path(plan["teacher_manifest"])).get("adopted")
    if adopted:
        stage = "teacher_generation"
        records[stage] = adopted_record(Path(plan["teacher_manifest"]), records[stage])
    return records


def adopted_record(manifest: Path, adoption: dict[str, Any]) -> dict[str, Any]:
    """The record found beside an adopted data set, or one that says that its energy is unavailable."""
    facts = read_json(manifest)
    folder = Path(facts["path"])
    candidates = [folder / "stages" / "synthetic_generation.json", folder.parent / "stages" / "synthetic_generation.json"]
    if facts.get("published_by"):
        candidates.insert(0, Path(facts["published_by"]).parents[1] / "stages" / "synthetic_generation.json")
    for candidate in candidates:
        if candidate.is_file():
            found: dict[str, Any] = read_json(candidate)
            return found | {k: adoption[k] for k in ("stage_id", "stage_name", "shared_by")}
    reason = f"the data set at {folder} was made elsewhere and no record lies beside it"
    nothing = dict.fromkeys(
        (
            *("total_energy_joules", "total_energy_kwh", "kwh_total", "joules_per_token", "useful_j", "wasted_j"),
            *("gpu_energy_joules", "cpu_energy_joules", "codecarbon_energy_kwh", "codecarbon_emissions_kg"),
        )
    )
    energy = {**adoption["energy"], "total": {"joules": None, "class": "unavailable", "boundary": [], "reason": reason}}
    carbon = adoption["carbon"] | {"grams": None, "reason": reason}
    return adoption | nothing | {"energy": energy, "carbon": carbon, "warnings": [*adoption["warnings"], reason]}


def summarise(
    plan: dict[str, Any], config: dict[str, Any], records: dict[str, dict[str, Any]], forecast: dict[str, ForecastRow]
) -> ExperimentSummary:
    """The summary of one experiment; energies of a role are null when one of its stages has none."""
    training = records[plan["training_stage"]]
    evaluation = read_json(Path(plan["evaluation"]))
    references = {name: read_json(Path(path)) for name, path in plan["references"].items()}
    return ExperimentSummary.model_validate(
        {
            "experiment_id": f"{plan['experiment']}-{fingerprint(config)}",
            "experiment_name": plan["experiment"],
            "pipeline": plan["pipeline"],
            "description": config["experiment"]["description"],
            **added_up(records, training),
            "reuse": {stage: {"experiments": len(users), "names": users} for stage, users in plan.get("sharing", {}).items()},
            "lineage": lineage(plan),
            "forecast": compare_forecast(forecast, {**plan["shared"], **plan["own"]}, records),
            "quality": evaluation,
            "references": references,
            "comparable": plan["comparable"],
            "config_fingerprint": fingerprint(config),
            "seedless_fingerprint": seedless_fingerprint(plan, config),
            "evaluations_on_the_way": on_the_way(training, Path(plan["own"][plan["training_stage"]])),
            "deployment": deployment(plan, records, evaluation, references),
            "stages": {**ancestors(plan), **records},
        }
    )


def lineage(plan: dict[str, Any]) -> dict[str, Any] | None:
    """What training the starting policy of a dpo experiment has cost: teacher and student stages of its ancestors.

    Their prerun, data and evaluation stages are left out: they are shared with this experiment or not needed for the policy.
    """
    if not plan["lineage"]:
        return None
    parent = read_json(Path(plan["lineage"]))
    roles = [parent["roles"][role] for role in ("teacher", "student")]
    before = [parent["lineage"]["total_energy_kwh"]] if parent["lineage"] else []
    return {
        "policy": parent["experiment_name"],
        "student_kwh": roles[1]["kwh"],
        "teacher_kwh": roles[0]["kwh"],
        "total_energy_kwh": sum_of([*(role["kwh"] for role in roles if role["stages"]), *before]),
    }


def ancestors(plan: dict[str, Any]) -> dict[str, Any]:
    """Training records that led to the starting policy, marked with `lineage`; they are in no total of this experiment."""
    if not plan["lineage"]:
        return {}
    parent = read_json(Path(plan["lineage"]))
    trainings = {stage: r for stage, r in parent["stages"].items() if r["role"] == "student"}
    return {stage: {"lineage": parent["experiment_name"], **record} for stage, record in trainings.items()}


def deployment(
    plan: dict[str, Any], records: dict[str, Any], evaluation: dict[str, Any], references: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Joules per generated token of the trained `model`, and of the reference models by the records of their evaluations."""
    found = {"model": deployed_cost(evaluation, records.get("evaluation"), Path(plan["evaluation"]))}
    for name, result in references.items():
        path = Path(plan["references"][name])
        record = path.parent / "stages" / "evaluation.json"
        found[name] = deployed_cost(result, read_json(record) if record.is_file() else None, path)
    return found


def seedless_fingerprint(plan: dict[str, Any], config: dict[str, Any]) -> str:
    """Equal for experiments that differ in their seed only (and in description, W&B run and paths): runs of one experiment.

    A starting policy counts by the fingerprint of the experiment that trained it, so that it may have another seed, too.
    """
    settings = {key: value for key, value in config.items() if key not in NO_SETTINGS}
    if plan["lineage"]:
        parent = read_json(Path(plan["lineage"]))
        before = parent.get("seedless_fingerprint") or parent["experiment_name"]
        settings["model"] = {**settings.get("model", {}), "policy": before}
    return fingerprint(settings)


def fingerprint(config: dict[str, Any]) -> str:
    """Short mark of a configuration."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


if __name__ == "__main__":
    sys.exit(main())
