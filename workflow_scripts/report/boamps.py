"""BoAmps reports (Boavizta's data model for the energy of AI tasks) of an experiment and of each of its stages.

A report needs a number: a stage without a figure gets none, and an experiment with such a stage gets no report of its total;
both are named with the reason. What BoAmps has no field for (class, boundary, uncertainty, what was wasted) is in
`taskDescription`. Energies in kWh, times UTC. The schemas are in boamps_schema/, with their licence.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft4Validator
from referencing import Registry

from workflow_scripts.accounting.model import ExperimentSummary, SummaryStage
from workflow_scripts.energy.model import Component, known_energy
from workflow_scripts.energy.uncertainty import KWH, Energy
from workflow_scripts.errors import UserError
from workflow_scripts.pipelines import IN_SUMMARY, PIPELINES, plain_name

SCHEMAS = Path(__file__).with_name("boamps_schema")
PREPARING = "preprocessing"  # what else an experiment needs: models fetched and pruned, the meter checked
FORMAT = {"formatVersion": "1.1.0", "formatVersionSpecificationUri": "https://github.com/Boavizta/BoAmps/tree/main/model"}
QUALITIES = ((10.0, "high"), (25.0, "medium"), (50.0, "low"))  # largest error [%], by the schema's own words
WHOLE = "experiment"


class BoampsError(UserError):
    """A report that does not fit the BoAmps schema."""


def reports(
    summary: ExperimentSummary, config: Mapping[str, Any], model: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Validated reports by `experiment` and stage name, and why others are left out.

    `config` is the resolved configuration, `model` the facts of the trained model's manifest.
    """
    stages = summary.in_order
    left_out = {name: r.energy.total.reason or "no energy figure" for name, r in stages.items() if r.spent is None}
    made = {name: _report(summary, config, model, {name: r}) for name, r in stages.items() if name not in left_out}
    if left_out:
        left_out[WHOLE] = f"without a figure of {', '.join(sorted(left_out))} there is no total"
    else:
        made[WHOLE] = _report(summary, config, model, stages)
    for name, report in made.items():
        validate(report, name)
    return made, left_out


def validate(report: Mapping[str, Any], name: str) -> None:
    """Raise BoampsError naming the field and the schema's complaint."""
    for error in _validator().iter_errors(report):
        raise BoampsError(f"BoAmps report of {name}: {error.json_path}: {error.message}")


@cache
def _validator() -> Draft4Validator:
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in SCHEMAS.glob("*_schema.json")]
    registry: Registry[Any] = Registry().with_contents([(schema["id"], schema) for schema in contents])
    return Draft4Validator(next(s for s in contents if s["title"] == "report"), registry=registry)


def _report(
    summary: ExperimentSummary, config: Mapping[str, Any], model: Mapping[str, Any], stages: Mapping[str, SummaryStage]
) -> dict[str, Any]:
    name = next(iter(stages)) if len(stages) == 1 else WHOLE
    records = list(stages.values())
    last = max(r.end_time for r in records)
    mark = f"{summary.experiment_id}/{name}/{last!r}"
    whole = known_energy(records)
    uncertainty = whole.uncertainty_pct
    quality = next((word for bound, word in QUALITIES if uncertainty is not None and uncertainty <= bound * (1 + 1e-9)), None)
    origin, known = records[-1].provenance, [IN_SUMMARY.get(plain_name(stage)) for stage in stages]
    report: dict[str, Any] = {
        "header": {
            **FORMAT,
            "reportId": str(uuid.uuid5(uuid.NAMESPACE_URL, mark)),
            "reportDatetime": _date(last),
            "reportStatus": "final" if all(r.status == "complete" for r in records) else "draft",
        },
        "task": {
            "taskStage": "+".join(dict.fromkeys(stage.boamps if stage else PREPARING for stage in known)),
            "taskFamily": "text generation",
            "algorithms": [_algorithm(summary, config, model, stages)],
            "dataset": _datasets(records),
            "taskDescription": _description(summary, stages, whole),
        },
        "measures": [_measure(records)],
        "system": {"os": origin.platform},
        "software": {"language": "python", "version": origin.python},
        "infrastructure": {"infraType": "other", "components": _components(records)},
        "environment": _environment(config, records),
        "quality": quality,
    }
    return {key: value for key, value in report.items() if value}


def _algorithm(
    summary: ExperimentSummary, config: Mapping[str, Any], model: Mapping[str, Any], stages: Mapping[str, SummaryStage]
) -> dict[str, Any]:
    """The trained model; for a stage of the teacher alone, the teacher."""
    packages = next(iter(stages.values())).provenance.packages
    version = packages.get("transformers")
    framework = {"framework": "transformers", "frameworkVersion": version} if version is not None else {}
    if all(r.role == "teacher" for r in stages.values()):
        return {"algorithmType": "llm", "foundationModelName": config["model"]["teacher"], **framework}
    return {
        "algorithmType": "llm",
        "trainingType": PIPELINES[summary.pipeline].boamps,
        "foundationModelName": config["model"]["student"],
        "parametersNumber": model["parameters"] / 1e9,
        "optimizer": config["training"]["optimizer"],
        **framework,
    }


def _datasets(records: list[SummaryStage]) -> list[dict[str, Any]]:
    """Tokens read and written, as far as they were counted."""
    sums = {"input": sum(r.work.input or 0 for r in records), "output": sum(r.work.generated or 0 for r in records)}
    found = [{"dataUsage": usage, "dataType": "token", "dataQuantity": tokens} for usage, tokens in sums.items() if tokens]
    return found or [{"dataUsage": "input", "dataType": "text"}]


def _description(summary: ExperimentSummary, stages: Mapping[str, SummaryStage], whole: Energy) -> str:
    """What the fields cannot say, in sentences."""
    uncertainty = "unknown." if whole.uncertainty_pct is None else f"+/- {whole.uncertainty_pct:.1f} %."
    wasted = sum(r.wasted_j or 0.0 for r in stages.values()) / KWH
    shared = [name for name, r in stages.items() if r.experiment is None]
    said = [
        f"Experiment {summary.experiment_name}, pipeline {summary.pipeline}; stages: {', '.join(stages)}.",
        f"Energy class {whole.energy_class}, boundary {' | '.join(sorted(whole.boundaries))}, uncertainty {uncertainty}",
        f"Of it {wasted:.6g} kWh were wasted by attempts that failed. PUE is not in it.",
    ]
    return " ".join(said + ([f"Counted whole although other experiments can use it: {', '.join(shared)}."] if shared else []))


def _measure(records: list[SummaryStage]) -> dict[str, Any]:
    methods = {name: _methods(records, (name, "module")) for name in ("cpu", "gpu")}
    everything = _methods(records, ("gpu", "module", "cpu", "dram", "node"))
    codecarbon = records[-1].provenance.packages.get("codecarbon")
    return {
        "measurementMethod": " + ".join(everything),
        **({"version": codecarbon} if codecarbon and all("CodeCarbon" in m for m in everything) else {}),
        **{f"{name}TrackingMode": " + ".join(found) for name, found in methods.items() if found},
        "powerConsumption": known_energy(records).kwh,
        "measurementDuration": sum(r.duration_seconds for r in records),
        "measurementDateTime": _date(min(r.start_time for r in records)),
    }


def _methods(records: list[SummaryStage], names: tuple[str, ...]) -> list[str]:
    inside: list[Component] = [getattr(r.energy, n) for r in records for n in names if n in r.energy.total.boundary]
    return list(dict.fromkeys(part.method for part in inside if part.method))


def _components(records: list[SummaryStage]) -> list[dict[str, Any]]:
    """CPUs (logical ones) by name, and GPUs by name and UUID; RAM without its size, which no record has."""
    cpus = {(r.provenance.host, r.provenance.cpu): r.provenance.cpu_count for r in records}
    found: list[dict[str, Any]] = [
        {"componentName": str(name), "componentType": "cpu", "nbComponent": count or 1} for (_, name), count in cpus.items()
    ]
    gpus = gpus_of(records).items()
    found += [{"componentName": name, "componentType": "gpu", "nbComponent": count} for name, count in gpus]
    if any("dram" in r.energy.total.boundary for r in records):
        found.append({"componentType": "ram", "nbComponent": 1})
    return found


def gpus_of(records: Iterable[SummaryStage]) -> Counter[str]:
    """How many GPUs of each name the stages had, by UUID, in the order of the names."""
    devices = {(str(device.name), str(device.uuid)) for r in records for device in r.devices}
    return Counter(name for name, _ in sorted(devices))


def _environment(config: Mapping[str, Any], records: list[SummaryStage]) -> dict[str, Any]:
    carbon = records[-1].carbon
    country = config["energy"]["country_iso_code"]
    place = carbon.region if carbon.region != country else None
    known = {"country": country, "location": place, "powerSourceCarbonIntensity": carbon.intensity_g_per_kwh}
    return {k: v for k, v in known.items() if v is not None} if country else {}  # BoAmps has no environment without a country


def _date(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
