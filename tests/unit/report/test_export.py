"""Model card and BoAmps reports of an experiment written by hand, read back by the hub's own parser and BoAmps' schema."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard

from tests.helpers.summaries import policy_cost, read, served, stage, summary
from workflow_scripts.artefact import publish
from workflow_scripts.report import boamps, model_card
from workflow_scripts.stages import export

CONFIG = {
    "model": {"teacher": "big", "student": "small"},
    "models": {
        "big": {"source": "hub", "repo_id": "lab/Big-7B", "revision": "main"},
        "small": {"source": "pruned", "of": "big", "keep_layers": [0]},
    },
    "data": {"dataset_choice": "chat", "datasets": {"chat": {"dataset_name": "lab/chat"}}},
    "training": {"optimizer": "adamw"},
    "energy": {"country_iso_code": "CAN"},
}
MODEL = {"parameters": 1_500_000_000}
GPU = {"uuid": "GPU-1", "name": "NVIDIA L40S"}


def record(joules: float | None, role: str, mark: str, loss: int | None = None, **more) -> dict:
    """A stage on one GPU, measured by NVML (4 %) and RAPL (3 %) in the ratio 3 : 1; 170 g/kWh."""
    parts = [("gpu", "NVML total energy counter", 4.0, 0.75 * joules), ("cpu", "RAPL", 3.0, 0.25 * joules)] if joules else None
    made = stage(joules, role, mark, parts=parts, loss=loss, devices=[GPU], **more)
    if joules is None:
        made["energy"]["total"] |= {"reason": "no source | at all"}
    grams = joules / 3.6e6 * 170 if joules else None
    made["carbon"] |= {"grams": grams, "intensity_g_per_kwh": 170.0, "source": "CodeCarbon's table", "year": 2023}
    made["carbon"] |= {"region": "Ontario, CAN", "reason": None if joules else "no energy figure"}
    made["work"]["input"] = 2 * loss if loss else None
    packages = {"transformers": "5.23.0", "codecarbon": "3.3.2"}
    made["provenance"] |= {"cpu_count": 8, "platform": "Linux", "python": "3.11.7", "packages": packages}
    return made


def experiment(**changes) -> dict:
    """360 kJ = 0.1 kWh of teacher, 720 kJ = 0.2 kWh of training, 180 kJ = 0.05 kWh of evaluation: 59.5 g at 170 g/kWh."""
    stages = {
        "evaluation": record(180e3, "evaluation", "e", start_time=3000.0, experiment="kd"),
        "logit_caching": record(360e3, "teacher", "t", loss=9000),
        "student_train": record(720e3, "student", "s", loss=8000, start_time=2000.0, experiment="kd"),
    }
    made = summary("kd_100%_mine", "kd", stages)
    made["quality"] |= {"perplexity": 20.5}
    return made | {
        "experiment_id": "kd-1",
        "description": "A student.",
        "deployment": {"model": served(0.5) | {"boundary": ["gpu", "cpu"]}},
        **changes,
    }


def parsed(content: str) -> tuple[ModelCard, dict]:
    card = ModelCard(content)
    return card, yaml.safe_load(content.split("---")[1])


def test_the_hub_reads_the_card() -> None:
    card, block = parsed(model_card.card(read(experiment()), CONFIG))
    assert block["co2_eq_emissions"] == {
        "emissions": 59.5,
        "source": "energy of every stage (measured, boundary gpu+cpu) x PUE 1 x 170 gCO2e/kWh (CodeCarbon's table, 2023)",
        "training_type": "fine-tuning",
        "geographical_location": "Ontario, CAN",
        "hardware_used": "1 x NVIDIA L40S, x (8 logical CPUs)",
    }
    assert card.data.base_model == "lab/Big-7B" and card.data.datasets == ["lab/chat"]
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    results = card.data.eval_results
    assert all(isinstance(result, EvalResult) for result in results)
    assert {r.metric_type: r.metric_value for r in results} == {
        "cross_entropy": 3.0,
        "perplexity": 20.5,
        "kl_to_teacher": 1.0,
        "top1_agreement": 0.5,
    }


def rows(content: str) -> dict[str, list[str]]:
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in content.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in lines}


def test_the_measured_table_has_class_boundary_uncertainty_and_quality() -> None:
    found = rows(model_card.card(read(experiment()), CONFIG))
    assert found["logit_caching"] == ["teacher", "0.1 ± 0.0031", "measured", "gpu+cpu", "40", "9000 loss", "yes"]
    assert found["student_train"] == ["student", "0.2 ± 0.0062", "measured", "gpu+cpu", "90", "8000 loss", ""]
    assert found["**total**"][:4] == ["", "0.35 ± 0.011", "measured", "gpu+cpu"]
    assert found["Cross entropy [nats/token]"] == ["3", "5", "2"]
    stages = [name for name in found if name in ("logit_caching", "student_train", "evaluation")]
    assert stages == ["logit_caching", "student_train", "evaluation"], "in the order of the work"


def test_metrics_of_tasks_are_in_the_quality_beside_those_of_the_teacher() -> None:
    made = experiment()
    made["quality"] |= {"tasks": {"metrics": {"arc/acc": {"value": 0.25}}}}
    made["references"]["teacher"] |= {"tasks": {"metrics": {"arc/acc": {"value": 0.5}}}}
    assert rows(model_card.card(read(made), CONFIG))["`arc/acc`"] == ["0.25", "", "0.5"]


def test_a_starting_policy_is_named_and_in_no_total() -> None:
    made = experiment(lineage=policy_cost(0.02, "base"))
    made["stages"]["base_train"] = record(72e3, "student", "b", loss=100) | {"lineage": "base"}
    content = model_card.card(read(made), CONFIG)
    assert "Made from the model of experiment `base` (a trained `small`)" in content
    assert rows(content)["base_train of base, in no total"][1] == "0.02 ± 0.00062"
    assert rows(content)["**total**"][1] == "0.35 ± 0.011"


def test_unknown_emissions_are_left_out_with_the_reason() -> None:
    made = experiment()
    made["stages"]["logit_caching"] = record(None, "teacher", "t")
    content = model_card.card(read(made), CONFIG)
    _, block = parsed(content)
    assert "co2_eq_emissions" not in block
    assert "Not known, so `co2_eq_emissions` is left out (logit_caching: no energy figure)." in content
    assert "| logit_caching | teacher | unavailable: no source \\| at all | unavailable |" in content


@pytest.mark.parametrize(
    ("name", "models", "expected"),
    [
        ("lab/Small-1B", {}, "lab/Small-1B"),
        ("/models/mine", {}, None),
        ("./lab/mine", {}, None),
        ("mine", {"mine": {"source": "folder", "path": "x"}}, None),
        ("mine", {"mine": {"source": "package", "package": "p"}}, None),
    ],
)
def test_only_models_of_the_hub_are_base_models(name, models, expected) -> None:
    assert model_card.hub_id({"models": models}, name) == expected


def test_reports_fit_the_boamps_schema_and_have_the_sums() -> None:
    made, left_out = boamps.reports(read(experiment()), CONFIG, MODEL)
    assert left_out == {} and set(made) == {"experiment", "logit_caching", "student_train", "evaluation"}
    whole = made["experiment"]
    assert whole["measures"] == [
        {
            "measurementMethod": "NVML total energy counter + RAPL",
            "cpuTrackingMode": "RAPL",
            "gpuTrackingMode": "NVML total energy counter",
            "powerConsumption": pytest.approx(0.35),
            "measurementDuration": 30.0,
            "measurementDateTime": "1970-01-01 00:16:40",
        }
    ]
    assert whole["task"]["taskStage"] == "datacreation+finetuning+inference"
    assert made["student_train"]["task"]["taskStage"] == "finetuning"
    assert made["student_train"]["measures"][0]["powerConsumption"] == pytest.approx(0.2)
    assert whole["task"]["algorithms"][0]["parametersNumber"] == 1.5
    assert made["logit_caching"]["task"]["algorithms"][0]["foundationModelName"] == "big"
    assert whole["task"]["dataset"] == [{"dataUsage": "input", "dataType": "token", "dataQuantity": 34000}]
    assert whole["environment"] == {"country": "CAN", "location": "Ontario, CAN", "powerSourceCarbonIntensity": 170.0}
    assert whole["quality"] == "high", "sqrt(3^2 + 0.75^2) = 3.09 %"
    text = whole["task"]["taskDescription"]
    assert "Energy class measured, boundary gpu+cpu, uncertainty +/- 3.1 %." in text
    assert "Counted whole although other experiments can use it: logit_caching." in text
    assert whole["header"]["reportDatetime"] == "1970-01-01 00:50:10"
    again, _ = boamps.reports(read(experiment()), CONFIG, MODEL)
    assert again == made


def test_a_stage_without_a_figure_has_no_report_and_no_total_of_zero() -> None:
    made = experiment()
    made["stages"]["logit_caching"] = record(None, "teacher", "t")
    found, left_out = boamps.reports(read(made), CONFIG, MODEL)
    assert set(found) == {"student_train", "evaluation"}
    assert left_out == {
        "logit_caching": "no source | at all",
        "experiment": "without a figure of logit_caching there is no total",
    }


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("measures", 0, "powerConsumption"), None, r"\$.measures\[0\].powerConsumption: None is not of type 'number'"),
        (("measures", 0, "measurementMethod"), ..., "'measurementMethod' is a required property"),
        (("task", "dataset", 0, "dataUsage"), "both", r"\$.task.dataset\[0\].dataUsage: 'both' is not one of"),
        (("infrastructure", "components", 0, "nbComponent"), 1.5, "1.5 is not of type 'integer'"),
        (("quality",), "fair", "'fair' is not one of"),
        (("task", "algorithms", 0, "parametersNumber"), "7B", "'7B' is not of type 'number'"),
    ],
)
def test_every_schema_of_boamps_is_applied(path, value, complaint) -> None:
    report = copy.deepcopy(boamps.reports(read(experiment()), CONFIG, MODEL)[0]["experiment"])
    *parents, last = path
    place = report
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    with pytest.raises(boamps.BoampsError, match=complaint):
        boamps.validate(report, "x")


def test_the_command_writes_the_same_bytes_twice_and_leaves_the_artefact_whole(tmp_path: Path) -> None:
    build = tmp_path / "build"
    build.mkdir()
    (build / "config.json").write_text("{}")
    manifest = tmp_path / "final_model" / "manifest.json"
    publish(build, manifest, "model", MODEL)
    before = manifest.read_bytes()
    (tmp_path / "summary.json").write_text(json.dumps(experiment()))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    names = {"summary": "summary.json", "config": "config.yaml", "model": "final_model/manifest.json"}
    names |= {"out": "final_model/README.md", "boamps": "boamps"}
    arguments = [word for name, path in names.items() for word in (f"--{name}", str(tmp_path / path))]
    written = []
    for _ in range(2):
        assert export.main(arguments) == 0, "the card of the first run does not damage the artefact"
        written.append({p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()})
    assert written[0] == written[1] and manifest.read_bytes() == before
    assert ModelCard.load(tmp_path / "final_model" / "README.md").data["co2_eq_emissions"]["emissions"] == 59.5
    assert json.loads((tmp_path / "boamps" / "left_out.json").read_text()) == {}
    assert len(list((tmp_path / "boamps").iterdir())) == 5


def test_a_summary_cut_in_the_middle_is_named(tmp_path: Path, capsys) -> None:
    (tmp_path / "summary.json").write_text('{"schema": ')
    arguments = [w for n in ("summary", "config", "model", "out", "boamps") for w in (f"--{n}", str(tmp_path / f"{n}.json"))]
    assert export.main(arguments) == 1
    assert "summary.json is not whole JSON" in capsys.readouterr().err
