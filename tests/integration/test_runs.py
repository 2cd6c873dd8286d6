"""Two seeds of two methods, run to the end at test size; what a third seed adds to the plan."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.conftest import copy_workflow

CAMPAIGN = {
    "experiment": {"seeds": [0, 1], "replicates": 2},
    "training": {"batch_tokens": 60},
    "comparison": {"experiments": ["demo_baseline", "demo_kd"], "baseline": "demo_baseline"},
}


def jobs(text: str) -> dict[str, int]:
    """Job counts of a dry run's first table."""
    table = text.split("Job stats:")[1].split("total")[0]
    return {name: int(count) for name, count in re.findall(r"^([\w-]+) +(\d+)$", table, re.MULTILINE)}


def test_a_campaign_of_two_seeds(tmp_path: Path, downloads: Path) -> None:
    workflow = copy_workflow(tmp_path / "workflow", downloads)
    path = workflow.folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(CAMPAIGN))
    workflow.snakemake("--cores", "2", overlay="campaign.yaml")
    found = workflow.json("results/comparison/comparison.json")
    members = {row["group"]: row["members"] for row in found["groups"]}
    assert members == {name: [f"{name}-seed0", f"{name}-seed1"] for name in ("demo_baseline", "demo_kd")}

    runs = {name: workflow.json(f"results/{name}/experiment_summary.json") for names in members.values() for name in names}
    for name, summary in runs.items():
        work = summary["stages"]["student_train"]["work"]
        assert work["loss"] / work["steps"] == pytest.approx(60, rel=0.3), name
        assert summary["comparable"]["seed"] == int(name[-1])
    losses = [runs[f"demo_baseline-seed{seed}"]["quality"]["cross_entropy"] for seed in (0, 1)]
    assert losses[0] != losses[1]

    caches = [runs[f"demo_kd-seed{seed}"]["stages"]["logit_caching"] for seed in (0, 1)]
    assert caches[0]["attempts"][0]["id"] != caches[1]["attempts"][0]["id"], "measured twice"
    made = [sorted((workflow.folder / Path(c["copied_from"]).parents[1]).glob("logit_cache/*.safetensors")) for c in caches]
    assert [p.name for p in made[0]] == [p.name for p in made[1]] and made[0]
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(*made, strict=True)), "the same to the bit"

    assert "Nothing to be done" in workflow.snakemake("-n", overlay="campaign.yaml").stdout
    path.write_text(yaml.safe_dump(CAMPAIGN | {"experiment": {"seeds": [0, 1, 2], "replicates": 2}}))
    added = dict.fromkeys(("student_train", "evaluation", "experiment_summary", "export_model"), 2)
    assert jobs(workflow.snakemake("-n", overlay="campaign.yaml").stdout) == {**added, "comparison": 1, "all": 1}
    assert jobs(workflow.snakemake("-n", "demo_kd-seed2", overlay="campaign.yaml").stdout) == {
        **dict.fromkeys(added, 1),
        "demo_kd-seed2": 1,
    }
