"""What comes back when files are deleted or edited by hand."""

from __future__ import annotations

from tests.conftest import Workflow
from tests.workflow.test_stale import ANSWER_KD, TRAINING_KD, plan


def test_a_deleted_model_is_made_again_with_what_needs_it(finished: Workflow) -> None:
    finished.path("results/demo_kd/final_model/manifest.json").unlink()
    assert set(plan(finished)) == TRAINING_KD


def test_a_deleted_summary_and_its_comparison_are_made_again(finished: Workflow) -> None:
    finished.path("results/demo_kd/experiment_summary.json").unlink()
    assert set(plan(finished, "demo_kd")) == ANSWER_KD


def test_a_deleted_or_edited_card_is_written_again_and_trains_nothing(finished: Workflow) -> None:
    card = finished.folder / "results" / "demo_kd" / "final_model" / "README.md"
    card.unlink()
    assert set(plan(finished)) == {"export_model demo_kd"}
    source = finished.folder / "workflow_scripts" / "report" / "templates" / "card.md.j2"
    source.write_text(source.read_text().replace("## Energy", "## What it has cost"))
    assert {job.split()[0] for job in plan(finished)} == {"export_model", "export_policy", "comparison"}
    finished.snakemake("--cores", "1", "results/demo_kd/final_model/README.md")
    assert "## What it has cost" in card.read_text()
    assert {job for job in plan(finished) if job.endswith("demo_kd")} == set(), "the card is no content of the model"


def test_a_deleted_cache_comes_back_when_something_needs_it(finished: Workflow) -> None:
    """A cache whose students are trained may be deleted to free the disk; nothing is made until it is needed."""
    finished.path("results/teacher/logit_cache-*/logit_cache/manifest.json").unlink()
    assert plan(finished) == {}
    assert set(plan(finished, "logit_caching")) == {"cache_logits", "merge_logits"}
    finished.path("results/demo_kd/final_model/manifest.json").unlink()
    assert set(plan(finished)) == TRAINING_KD | {"cache_logits", "merge_logits"}
