"""The Hugging Face model card: what making the model has cost, with class, boundary and uncertainty, and how good it is.

The metadata follow the hub's model card specification: `co2_eq_emissions` {emissions [g], source, training_type,
geographical_location, hardware_used} and a model index. Emissions that are not known are left out, and the text says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from workflow_scripts.accounting.costs import in_order, own_stages
from workflow_scripts.accounting.load import training_stage
from workflow_scripts.accounting.qualities import task_metrics, value_of
from workflow_scripts.artefact import RANDOM_WEIGHTS
from workflow_scripts.report.rounding import number

PIPELINES = {
    "kd": "knowledge distillation on the teacher's logits",
    "sft": "fine-tuning on text that the teacher wrote",
    "dpo": "direct preference optimisation on pairs that the teacher wrote and ranked",
    "baseline": "fine-tuning on the data's own answers",
}
METRICS = (
    ("cross_entropy", "Cross entropy [nats/token]"),
    ("perplexity", "Perplexity"),
    ("kl_to_teacher", "KL divergence from the teacher [nats/token]"),
    ("top1_agreement", "Top-1 agreement with the teacher"),
)


def card(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The README of the final model, from its experiment's summary and resolved configuration."""
    stages = in_order(own_stages(dict(summary)))
    return "\n".join(
        [
            f"---\n{metadata(summary, config).to_yaml()}\n---",
            f"\n# {summary['experiment_name']}\n",
            _introduction(summary, config),
            *([f"\n**Warning: {RANDOM_WEIGHTS}.**"] if RANDOM_WEIGHTS in (summary.get("warnings") or ()) else []),
            "\n## Energy\n",
            *_energy(summary, stages),
            "\n## Emissions\n",
            _emissions(summary, stages),
            "\n## Quality\n",
            *_quality(summary),
            "",
        ]
    )


def metadata(summary: Mapping[str, Any], config: Mapping[str, Any]) -> ModelCardData:
    """The card's YAML block."""
    base = hub_id(config, config["model"]["student"])
    dataset = config["data"]["datasets"][config["data"]["dataset_choice"]].get("dataset_name")
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["distillation-energy-benchmark", str(summary["pipeline"])],
        base_model=base,
        datasets=[dataset] if dataset else None,
        model_name=summary["experiment_name"],
        eval_results=_results(summary, config) or None,
    )
    if (found := emissions(summary)) is not None:
        data["co2_eq_emissions"] = found
    return data


def hub_id(config: Mapping[str, Any], name: str) -> str | None:
    """Hub id of a model of the configuration, or of the one that it was pruned from; None where it is not on the hub."""
    source = config["models"].get(name)
    if source is None:
        return name if name.count("/") == 1 and not name.startswith((".", "/", "~")) else None
    if source["source"] == "pruned":
        return hub_id(config, source["of"])
    return source["repo_id"] if source["source"] == "hub" else None


def emissions(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """`co2_eq_emissions` of all stages of the experiment; None when a stage's grams are not known."""
    grams = summary["carbon_grams"]
    if grams is None:
        return None
    records = list(own_stages(dict(summary)).values())
    intensities = dict.fromkeys(_intensity(r["carbon"]) for r in records)
    energy = summary["energy"]
    return {
        "emissions": grams,
        "source": f"energy of every stage ({energy['class']}, boundary {' | '.join(energy['boundary'])}) x "
        + "; ".join(intensities),
        "training_type": "fine-tuning",
        "geographical_location": "; ".join(dict.fromkeys(str(r["carbon"]["region"]) for r in records)),
        "hardware_used": hardware(records),
    }


def _intensity(carbon: Mapping[str, Any]) -> str:
    origin = ", ".join(str(carbon[key]) for key in ("source", "year") if carbon[key])
    return f"PUE {carbon['pue']:g} x {carbon['intensity_g_per_kwh']:.4g} gCO2e/kWh ({origin})"


def hardware(records: Sequence[Mapping[str, Any]]) -> str:
    """GPUs and CPUs of all stages, by name and number."""
    gpus: dict[str, set[str]] = {}
    for device in (d for r in records for d in r["devices"]):
        gpus.setdefault(str(device.get("name")), set()).add(str(device.get("uuid")))
    cpus = dict.fromkeys(f"{r['provenance']['cpu']} ({r['provenance']['cpu_count']} logical CPUs)" for r in records)
    return ", ".join([*(f"{len(ids)} x {name}" for name, ids in sorted(gpus.items())), *cpus, *([] if gpus else ["no GPU"])])


def _results(summary: Mapping[str, Any], config: Mapping[str, Any]) -> list[EvalResult]:
    """Quality on the held-out split, for the model index."""
    choice = config["data"]["dataset_choice"]
    dataset = config["data"]["datasets"][choice].get("dataset_name") or choice
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset,
            dataset_name=f"{choice}, held-out split",
            metric_type=key,
            metric_name=title,
            metric_value=value,
        )
        for key, title in METRICS
        if (value := summary["quality"].get(key)) is not None
    ]


def _introduction(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    training = summary["stages"][training_stage(dict(summary))]
    start = f"`{config['model']['student']}`"
    if summary["lineage"]:
        start = f"the model of experiment `{summary['lineage']['policy']}` (a trained {start})"
    tokens = training["tokens_processed"]
    return (
        f"{summary['description']} Made from {start} by {PIPELINES[summary['pipeline']]}"
        + (f", with `{config['model']['teacher']}` as the teacher" if summary["pipeline"] != "baseline" else "")
        + (f", on {tokens} {training['tokens_unit']} tokens." if tokens else ".")
    ).strip()


def _energy(summary: Mapping[str, Any], stages: Mapping[str, dict[str, Any]]) -> list[str]:
    """The measured table: a row per stage, the total, and what the figures hold."""
    head = ("Stage", "Role", "kWh", "Class", "Boundary", "J/token", "Tokens", "Shared by")
    rows = [(name, r["role"], *_figures(r), _shared(r)) for name, r in stages.items()]
    whole = summary["energy"]
    spread = whole["uncertainty_j"] / 3.6e6 if whole["uncertainty_j"] is not None else None
    label = number(summary["total_energy_kwh"], spread)
    rows.append(("**total**", "", label, whole["class"], " \\| ".join(whole["boundary"]), "", "", ""))
    for name, record in summary["stages"].items():
        if "lineage" in record:
            rows.append((f"{name} of {record['lineage']}, in no total", record["role"], *_figures(record), ""))
    lines = [_line(head), _line(["---"] * len(head)), *(_line(row) for row in rows), ""]
    lines.append(
        "Class `measured` is a hardware counter, `integrated` power samples, `modelled` a model of load and TDP; ± is the "
        "instruments' uncertainty. A stage that several experiments share is counted whole. PUE is not in it."
    )
    if summary["wasted_j"]:
        lines.append(f"\nOf the total, {summary['wasted_j'] / 3.6e6:.4g} kWh went into attempts that failed.")
    served = (summary["deployment"].get("model") or {}).get("joules_per_token")
    if served is not None:
        lines.append(f"\nGenerating one token costs {served:.4g} J on the same hardware ({_boundary(summary)}).")
    return lines


def _boundary(summary: Mapping[str, Any]) -> str:
    return f"boundary {'+'.join(summary['deployment']['model']['boundary'])}, prompts included"


def _figures(record: Mapping[str, Any]) -> tuple[str, ...]:
    total = record["energy"]["total"]
    spread = total.get("uncertainty_j")
    energy = number(record["total_energy_kwh"], spread / 3.6e6 if spread is not None else None)
    if record["total_energy_kwh"] is None:
        energy = f"unavailable: {_cell(total.get('reason') or 'no figure')}"
    unit = record["tokens_unit"]
    return (
        energy,
        total["class"],
        "+".join(total["boundary"]),
        number(record["joules_per_token"]),
        f"{record['tokens_processed']} {unit}" if record["tokens_processed"] else "",
    )


def _shared(record: Mapping[str, Any]) -> str:
    users = len(record.get("shared_by") or [])
    return f"{users} experiments" if users > 1 else ""


def _emissions(summary: Mapping[str, Any], stages: Mapping[str, dict[str, Any]]) -> str:
    found = emissions(summary)
    if found is None:
        unknown = {name: r["carbon"]["reason"] for name, r in stages.items() if r["carbon"]["grams"] is None}
        reasons = "; ".join(f"{name}: {reason or 'no grams'}" for name, reason in unknown.items())
        return f"Not known, so `co2_eq_emissions` is left out ({reasons})."
    return f"{found['emissions']:.4g} gCO2e: {found['source']}. Location: {found['geographical_location']}."


def _quality(summary: Mapping[str, Any]) -> list[str]:
    references = summary["references"]
    head = ("On held-out text", "this model", "before training", "teacher")
    models = (summary["quality"], references.get("student") or {}, references.get("teacher") or {})
    rows = [(title, *(number(model.get(key)) for model in models)) for key, title in METRICS]
    rows += [(f"`{name}`", *(number(value_of(m, name)) for m in models)) for name in sorted(task_metrics(models[0]))]
    return [_line(head), _line(["---"] * len(head)), *(_line(row) for row in rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
