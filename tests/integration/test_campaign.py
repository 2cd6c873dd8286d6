"""The bill of a real run, before and after a changed configuration has made a training again."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
import yaml
from huggingface_hub import ModelCard

from tests.conftest import REPOSITORY, Workflow
from workflow_scripts.accounting.bill import bill
from workflow_scripts.artefact import CARD, MANIFEST, inventory, open_artefact, sha256
from workflow_scripts.report import boamps

SUMMARY_SCHEMA = json.loads((REPOSITORY / "workflow_scripts" / "accounting" / "summary_schema.json").read_text())


def spent(workflow: Workflow) -> float:
    """Joules in the last line of every ledger, without the program's own reading of it."""
    total = 0.0
    for path in (workflow.folder / "results" / "state").glob("**/attempts/*.jsonl"):
        joules = [json.loads(line) for line in path.read_text().splitlines()][-1].get("joules", {})
        total += sum(joules[name]["joules"] or 0.0 for name in ("gpu", "cpu", "dram") if name in joules)
    return total


def test_a_training_made_again_leaves_the_first_one_on_the_bill(finished: Workflow) -> None:
    root = finished.folder / "results"
    before = bill(root).content()
    assert before["total"]["joules"] == pytest.approx(spent(finished))
    old = finished.json("results/demo_kd/stages/student_train.json")
    path = finished.folder / "config" / "experiments" / "demo_kd.yaml"
    content = yaml.safe_load(path.read_text())
    content["training"] = {"learning_rate": 1.0e-4}
    path.write_text(yaml.safe_dump(content))
    finished.snakemake("--cores", "2", "results/demo_kd/final_model/manifest.json")
    new = finished.json("results/demo_kd/stages/student_train.json")
    after = bill(root).content()
    assert after["total"]["joules"] == pytest.approx(spent(finished))
    assert after["total"]["joules"] - before["total"]["joules"] == pytest.approx(new["total_energy_joules"])
    assert after["total"]["superseded_j"] - before["total"]["superseded_j"] == pytest.approx(old["useful_j"])
    status = {v["fingerprint"]: v["status"] for v in after["versions"] if v["experiment"] == "demo_kd"}
    assert status[old["provenance"]["fingerprint"]] == "superseded"
    assert status[new["provenance"]["fingerprint"]] == "current"
    columns = [after["total"][f"{name}_j"] for name in ("useful", "wasted", "superseded", "in_progress")]
    assert sum(columns) == pytest.approx(after["total"]["joules"])


def test_what_a_run_exports_can_be_read_by_others(tiny_run: Workflow) -> None:
    for name in ("demo_kd", "demo_sft", "demo_baseline", "demo_dpo"):
        final = tiny_run.folder / "results" / name / ("final_policy" if name == "demo_dpo" else "final_model")
        summary = tiny_run.json(f"results/{name}/experiment_summary.json")
        jsonschema.validate(summary, SUMMARY_SCHEMA)
        card = ModelCard.load(final / CARD)
        assert card.data["co2_eq_emissions"]["emissions"] == pytest.approx(summary["total_energy_kwh"] * 170.043, rel=1e-3)
        assert {r.metric_type: r.metric_value for r in card.data.eval_results}["cross_entropy"] == pytest.approx(
            summary["quality"]["cross_entropy"]
        )
        for stage in (stage for stage, r in summary["stages"].items() if "lineage" not in r):
            assert re.search(
                rf"^\| {stage} \| \w+ \| ([\d.e-]+ ± [\d.e-]+|unavailable: .*) \| (modelled|measured|una)", card.text, re.M
            )
        _, facts = open_artefact(final / MANIFEST, "model")
        assert CARD not in facts["files"] and facts["files"] == inventory(final)
        assert facts["files"]["model.safetensors"]["sha256"] == sha256(final / "model.safetensors")
        reports = {p.stem: json.loads(p.read_text()) for p in (tiny_run.folder / "results" / name / "boamps").glob("*.json")}
        left_out = reports.pop("left_out")
        assert set(reports) | set(left_out) == {"experiment", *(s for s, r in summary["stages"].items() if "lineage" not in r)}
        for stage, report in reports.items():
            boamps.validate(report, stage)
        if not left_out:
            kwh = [r["measures"][0]["powerConsumption"] for stage, r in reports.items() if stage != "experiment"]
            assert reports["experiment"]["measures"][0]["powerConsumption"] == pytest.approx(sum(kwh))


def test_the_tables_for_papers_name_every_experiment(tiny_run: Workflow) -> None:
    folder = tiny_run.folder / "results" / "comparison"
    plain, typeset = ((folder / f"comparison.{ending}").read_text() for ending in ("md", "tex"))
    for row in tiny_run.json("results/comparison/comparison.json")["groups"]:
        assert f"| {row['group'].replace('_', chr(92) + '_')} | 1 |" in plain
        assert f"{row['group'].replace('_', chr(92) + '_')} & 1 &" in typeset
    assert "modelled" in plain and "cpu+dram" in typeset and "±" in plain
