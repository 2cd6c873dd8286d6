"""The Hugging Face model card: what making the model has cost, with class, boundary and uncertainty, and how good it is.

The metadata follow the hub's model card specification: `co2_eq_emissions` {emissions [g], source, training_type,
geographical_location, hardware_used} and a model index. Emissions that are not known are left out, and the text says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from workflow_scripts.accounting.model import ExperimentSummary
from workflow_scripts.accounting.quality import Evaluation
from workflow_scripts.artefact import RANDOM_WEIGHTS
from workflow_scripts.energy.model import StageRecord
from workflow_scripts.energy.uncertainty import Energy
from workflow_scripts.pipelines import PIPELINES
from workflow_scripts.report.boamps import gpus_of
from workflow_scripts.report.pages import TEMPLATES, pipe
from workflow_scripts.report.rounding import number

METRICS = {
    "cross_entropy": "Cross entropy [nats/token]",
    "perplexity": "Perplexity",
    "bits_per_byte": "Bits per byte of the answers",
    "kl_to_teacher": "KL divergence from the teacher [nats/token]",
    "top1_agreement": "Top-1 agreement with the teacher",
}


def card(summary: ExperimentSummary, config: Mapping[str, Any]) -> str:
    """The README of the final model, from its experiment's summary and resolved configuration."""
    return TEMPLATES.get_template("card.md.j2").render(
        metadata=metadata(summary, config),
        summary=summary,
        models=config["model"],
        method=PIPELINES[summary.pipeline].sentence,
        random_weights=RANDOM_WEIGHTS,
        energy=_energy(summary),
        served=summary.deployment.get("model"),
        quality=_quality(summary),
    )


def metadata(summary: ExperimentSummary, config: Mapping[str, Any]) -> ModelCardData:
    """The card's YAML block, with the quality on the held-out split for the model index."""
    choice = config["data"]["dataset_choice"]
    dataset = config["data"]["datasets"][choice].get("dataset_name")
    where = {"dataset_type": dataset or choice, "dataset_name": f"{choice}, held-out split"}
    results = [
        EvalResult(task_type="text-generation", metric_type=key, metric_name=title, metric_value=value, **where)
        for key, title in METRICS.items()
        if (value := summary.quality.quality(key)) is not None
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["distillation-energy-benchmark", summary.pipeline],
        base_model=hub_id(config, config["model"]["student"]),
        datasets=[dataset] if dataset else None,
        model_name=summary.experiment_name,
        eval_results=results or None,
        co2_eq_emissions=emissions(summary),
    )


def hub_id(config: Mapping[str, Any], name: str) -> str | None:
    """Hub id of a model of the configuration, or of the one that it was pruned from; None where it is not on the hub."""
    source = config["models"].get(name)
    if source is None:
        return name if name.count("/") == 1 and not name.startswith((".", "/", "~")) else None
    if source["source"] == "pruned":
        return hub_id(config, source["of"])
    return source["repo_id"] if source["source"] == "hub" else None


def emissions(summary: ExperimentSummary) -> dict[str, Any] | None:
    """`co2_eq_emissions` of all stages of the experiment; None when a stage's grams are not known."""
    if summary.carbon_grams is None:
        return None
    records, energy = list(summary.own.values()), summary.energy
    intensities = []
    for carbon in (r.carbon for r in records):
        source = ", ".join(str(said) for said in (carbon.source, carbon.year) if said)
        intensities.append(f"PUE {carbon.pue:g} x {carbon.intensity_g_per_kwh:.4g} gCO2e/kWh ({source})")
    origin = f"energy of every stage ({energy.energy_class}, boundary {' | '.join(energy.boundary)})"
    gpus = [f"{count} x {name}" for name, count in gpus_of(records).items()]
    cpus = dict.fromkeys(f"{r.provenance.cpu} ({r.provenance.cpu_count} logical CPUs)" for r in records)
    return {
        "emissions": summary.carbon_grams,
        "source": f"{origin} x {'; '.join(dict.fromkeys(intensities))}",
        "training_type": "fine-tuning",
        "geographical_location": "; ".join(dict.fromkeys(r.carbon.region or "not given" for r in records)),
        "hardware_used": ", ".join([*gpus, *cpus, *([] if gpus else ["no GPU"])]),
    }


def _energy(summary: ExperimentSummary) -> str:
    """The measured table: a row per stage, the total, and stages of the starting policy."""
    head = ("Stage", "Role", "kWh", "Class", "Boundary", "J/token", "Tokens", "Shared")
    rows = [(name, r.role, *_figures(r), "" if r.experiment else "yes") for name, r in summary.in_order.items()]
    total = (_kwh(summary.spent()), summary.energy.energy_class, " \\| ".join(summary.energy.boundary))
    rows.append(("**total**", "", *total, "", "", ""))
    before = {name: record for name, record in summary.stages.items() if record.lineage is not None}
    rows += [(f"{name} of {r.lineage}, in no total", r.role, *_figures(r), "") for name, r in before.items()]
    return pipe(rows, head)


def _kwh(spent: Energy | None) -> str:
    return number(spent.kwh, spent.uncertainty_kwh) if spent is not None else ""


def _figures(record: StageRecord) -> tuple[str, ...]:
    total = record.energy.total
    reason = " ".join((total.reason or "no figure").replace("|", "\\|").split())
    tokens = f"{record.tokens_processed} {record.tokens_unit}" if record.tokens_processed else ""
    energy = _kwh(record.spent) or f"unavailable: {reason}"
    return (energy, total.energy_class, record.boundary, number(record.joules_per_token), tokens)


def _quality(summary: ExperimentSummary) -> str:
    models = (summary.quality, *(summary.references.get(name, Evaluation()) for name in ("student", "teacher")))
    titles = METRICS | {name: f"`{name}`" for name in sorted(summary.quality.metrics)}
    rows = [(title, *(number(model.quality(key)) for model in models)) for key, title in titles.items()]
    return pipe(rows, ("On held-out text", "this model", "before training", "teacher"))
