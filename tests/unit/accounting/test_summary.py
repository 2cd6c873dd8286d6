"""The experiment summary from records written by hand: every key of the guide, the sums, and the same bytes twice."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.helpers.summaries import stage
from workflow_scripts.accounting.model import ExperimentSummary
from workflow_scripts.accounting.summary import main

SCHEMA = json.loads(Path(__file__).parents[3].joinpath("workflow_scripts/accounting/summary_schema.json").read_text())
GUIDE = ("total_energy_kwh", "stages", "tokens", "throughput", "joules_per_token", "total_tokens_processed")


def record(joules: float, role: str, wasted: float = 0.0, loss: int | None = None) -> dict:
    made = stage(joules, role, f"{role} {joules}", loss=loss)
    return made | {"useful_j": joules - wasted, "wasted_j": wasted, "carbon": made["carbon"] | {"grams": joules / 100}}


def make(folder, config: dict) -> list[str]:
    """Arguments of the summary of a kd experiment, with its inputs on disk."""
    for name, content in {
        "prerun": record(100.0, "prerun"),
        "preprocess": record(200.0, "data"),
        "logit_caching": record(600.0, "teacher", loss=50),
        "student_train": record(300.0, "student", wasted=40.0, loss=60),
        "evaluation": record(50.0, "evaluation"),
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    reference = folder / "reference" / "evaluation.json"
    (reference.parent / "stages").mkdir(parents=True, exist_ok=True)
    (reference.parent / "stages" / "evaluation.json").write_text(json.dumps(record(80.0, "evaluation")))
    reference.write_text(json.dumps({"cross_entropy": 5.0, "generation": {"generated_tokens": 4, "seconds": 1.0}}))
    (folder / "own.json").write_text(json.dumps({"cross_entropy": 4.0, "generation": {"generated_tokens": 5, "seconds": 2.0}}))
    (folder / "validation.json").write_text("{}")
    plan = {
        "experiment": "kd",
        "pipeline": "kd",
        "training_stage": "student_train",
        "shared": {name: str(folder / f"{name}.json") for name in ("prerun", "preprocess", "logit_caching")},
        "own": {name: str(folder / f"{name}.json") for name in ("student_train", "evaluation")},
        "evaluation": str(folder / "own.json"),
        "references": {"student": str(reference), "teacher": str(reference)},
        "comparable": {"seed": 1},
        "seedless_fingerprint": "kd of any seed",
        "lineage": None,
        "teacher_manifest": None,
        "output_dir": str(folder / "out"),
        "prerun": str(folder / "validation.json"),
    }
    out = folder / "out" / "experiment_summary.json"
    return ["--plan", json.dumps(plan), "--config", json.dumps(config), "--out", str(out)]


def test_the_summary_has_what_the_guide_names_and_the_sums_are_right(tmp_path, monkeypatch) -> None:
    config = {"experiment": {"description": "d", "seed": 1}, "training": {"lr": 1}}
    monkeypatch.setattr("sys.argv", ["summary", *make(tmp_path, config)])
    assert main() == 0
    path = tmp_path / "out" / "experiment_summary.json"
    found = json.loads(path.read_text())
    assert set(GUIDE) <= set(found)
    assert found["total_energy_kwh"] == pytest.approx((100 + 200 + 600 + 300 + 50) / 3.6e6)
    assert {role: entry["joules"] for role, entry in found["roles"].items()} == {
        "prerun": 100,
        "data": 200,
        "teacher": 600,
        "student": 300,
        "evaluation": 50,
    }
    assert (found["useful_j"], found["wasted_j"]) == (1210, 40)
    assert found["seedless_fingerprint"] == "kd of any seed"
    assert (found["tokens"]["loss"], found["total_tokens_processed"]) == (110, 60)
    assert found["joules_per_token"] == 5 and found["throughput"]["student_train"] == 6
    assert (found["energy"]["class"], found["energy"]["boundary"]) == ("measured", ["cpu"])
    assert found["energy"]["uncertainty_j"] == pytest.approx(0.05 * 1250), "one instrument: linear"
    assert found["stages"]["logit_caching"]["copied_from"] == str(tmp_path / "logit_caching.json")
    assert "reuse" not in found and "shared_by" not in found["stages"]["logit_caching"], "it does not know who is compared"
    assert found["quality"]["cross_entropy"] == 4
    assert found["carbon_grams"] == 12.5
    assert found["config_fingerprint"] in found["experiment_id"] and len(found["config_fingerprint"]) == 12
    assert found["deployment"]["model"]["joules_per_token"] == pytest.approx(50 / 10 * 2 / 5)
    assert found["deployment"]["teacher"]["joules_per_token"] == pytest.approx(80 / 10 * 1 / 4)
    assert yaml.safe_load((tmp_path / "out" / "run_config.yaml").read_text()) == config
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert main() == 0
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before


CONFIG = {"experiment": {"description": "d", "seed": 1}, "training": {"lr": 1}}


def summed(tmp_path, monkeypatch, changes: dict[str, dict]) -> dict:
    """The summary with some records changed."""
    arguments = make(tmp_path, CONFIG)
    for name, change in changes.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    monkeypatch.setattr("sys.argv", ["summary", *arguments])
    assert main() == 0
    found = json.loads((tmp_path / "out" / "experiment_summary.json").read_text())
    jsonschema.validate(found, SCHEMA)
    return found


def test_every_role_says_how_its_energy_was_obtained_and_what_of_it_was_wasted(tmp_path, monkeypatch) -> None:
    """A second data stage of 80 J, modelled by CodeCarbon over cpu and dram at 50 %."""
    model = "CodeCarbon RAM model"
    other = stage(80.0, "data", "d", parts=[("cpu", "CodeCarbon cpu_load", 50.0, 60.0), ("dram", model, 50.0, 20.0)])
    other["energy"]["total"]["class"] = "modelled"
    found = summed(tmp_path, monkeypatch, {"logit_caching": other | {"useful_j": 75.0, "wasted_j": 5.0}})
    roles = found["roles"]
    assert roles["data"] == {
        "joules": 280,
        "kwh": pytest.approx(280 / 3.6e6),
        "uncertainty_kwh": pytest.approx((10**2 + 30**2 + 10**2) ** 0.5 / 3.6e6),
        "stages": 2,
        "useful_j": 275,
        "wasted_j": 5,
        "class": "modelled",
        "boundary": ["cpu", "cpu+dram"],
    }
    assert (roles["student"]["useful_j"], roles["student"]["wasted_j"]) == (260, 40)
    assert (roles["student"]["class"], roles["student"]["boundary"]) == ("measured", ["cpu"])
    assert roles["teacher"] == {
        **dict.fromkeys(("joules", "kwh", "uncertainty_kwh", "useful_j", "wasted_j", "class")),
        "stages": 0,
        "boundary": [],
    }
    assert found["energy"]["class"] == "modelled"
    assert "stages have different boundaries: cpu, cpu+dram" in found["warnings"]


def test_a_stage_without_a_figure_leaves_no_total_and_no_grams(tmp_path, monkeypatch) -> None:
    nothing = stage(None, "teacher", "t")
    nothing["energy"]["total"] |= {"class": "unavailable", "reason": "no source"}
    found = summed(tmp_path, monkeypatch, {"logit_caching": nothing})
    for key in ("total_energy_joules", "total_energy_kwh", "overall_joules_per_token", "carbon_grams"):
        assert found[key] is None, key
    assert found["energy"] == {
        "class": "measured",
        "boundary": ["cpu"],
        "complete": False,
        "uncertainty_j": None,
        "uncertainty_pct": None,
    }
    assert found["roles"]["teacher"]["joules"] is None and found["roles"]["teacher"]["class"] == "unavailable"
    assert found["roles"]["student"]["joules"] == 300
    assert "logit_caching: no energy figure, so there is no total" in found["warnings"]
    assert (found["useful_j"], found["wasted_j"]) == (610, 40), "of the stages that are known"


def test_a_partial_record_is_named(tmp_path, monkeypatch) -> None:
    found = summed(tmp_path, monkeypatch, {"evaluation": {"status": "partial"}})
    assert "evaluation: its record is partial: its energy is a lower bound" in found["warnings"]
    assert found["total_energy_joules"] == 1250


def test_a_plan_that_says_who_shares_gives_the_same_bytes(tmp_path, monkeypatch) -> None:
    """Another set of compared experiments changes no summary."""
    arguments, out = make(tmp_path, CONFIG), tmp_path / "out" / "experiment_summary.json"
    written = []
    for more in ({}, {"sharing": {"logit_caching": ["kd", "kd2"]}}):
        arguments[1] = json.dumps(json.loads(arguments[1]) | more)
        monkeypatch.setattr("sys.argv", ["summary", *arguments])
        assert main() == 0
        written.append(out.read_bytes())
    assert written[0] == written[1]


def test_a_summary_is_read_back_as_it_was_written(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["summary", *make(tmp_path, CONFIG)])
    assert main() == 0
    path = tmp_path / "out" / "experiment_summary.json"
    assert ExperimentSummary.read(path).content() == json.loads(path.read_text())


def test_a_damaged_evaluation_is_named(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["summary", *make(tmp_path, CONFIG)])
    (tmp_path / "own.json").write_text(json.dumps({"cross_entropy": [1]}))
    assert main() == 1
    assert "own.json: cross_entropy: Input should be a valid number: delete it" in capsys.readouterr().err


def test_a_record_that_another_run_has_written_meanwhile_is_refused_with_the_difference(tmp_path, monkeypatch, capsys) -> None:
    arguments = make(tmp_path, {"experiment": {"description": "d", "seed": 1}})
    plan = json.loads(arguments[1])
    path = tmp_path / "student_train.json"
    made = json.loads(path.read_text())
    made["provenance"] = made["provenance"] | {"settings": {"training": {"tokens": 300, "lr": 1}}}
    path.write_text(json.dumps(made))
    monkeypatch.setattr("sys.argv", ["summary", "--plan", json.dumps(plan | settings(900)), *arguments[2:]])
    assert main() == 1
    assert f"{path}: made with training.tokens=300 instead of 900: another run has written it" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["summary", "--plan", json.dumps(plan | settings(300)), *arguments[2:]])
    assert main() == 0


def settings(tokens: int) -> dict:
    """The training that a summary's plan has."""
    return {"settings": {"student_train": {"training": {"tokens": tokens, "lr": 1}}}}
