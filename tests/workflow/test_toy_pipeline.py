"""What a new pipeline costs: an entry, its stage's module, its config section, an experiment file. It is planned and run."""

from __future__ import annotations

from tests.conftest import Workflow
from tests.workflow.test_stale import plan

ENTRIES = (
    (
        '        Stage("evaluation",',
        '        Stage("toy_training", "student", ("experiment.seed", "toy"), folder="final_toy"),\n',
    ),
    ('        Pipeline("baseline",', '        Pipeline("toy", "the student as it is, scaled", "toy_training"),\n'),
)
SECTION = '''"""The section `toy`."""

from __future__ import annotations

from pydantic import Field

from workflow_scripts.settings.section import Section


class Toy(Section):
    """A training that trains nothing."""

    scale: float = Field(1.0, gt=0, description="Factor on the weights of the last norm.")
'''
STAGE = '''"""toy_training: scales one tensor of the student."""

from __future__ import annotations

import torch

from workflow_scripts.distill.models import load_model, load_tokenizer, model_facts, open_model
from workflow_scripts.progress import Progress
from workflow_scripts.stages.runtime.common import Arguments, build_dir, publish, run_stage


def toy_training(args: Arguments) -> None:
    """Publish the scaled student."""
    folder, _ = open_model(args.inputs["student"])
    model = load_model(folder, torch.float32, "sdpa")
    with Progress("loss", total=1) as progress, torch.no_grad():
        model.model.norm.weight.mul_(args.settings.toy.scale)
        progress.add(loss=1, steps=1, examples=1)
    build = build_dir(args.out)
    model.save_pretrained(build)
    load_tokenizer(folder).save_pretrained(build)
    publish(build, args.out, "model", {"name": args.extra["name"], "source": "trained", **model_facts(build)})


if __name__ == "__main__":
    run_stage(toy_training, ["student", "corpus"], ["name", "wandb"])
'''


def test_a_new_pipeline_costs_one_entry_one_stage_one_section_one_file(finished: Workflow) -> None:
    package = finished.folder / "workflow_scripts"
    registry = package / "pipelines.py"
    text = registry.read_text()
    for before, entry in ENTRIES:
        assert text.count(before) == 1
        text = text.replace(before, entry + before)
    registry.write_text(text)
    schema = package / "settings" / "schema.py"
    schema.write_text(
        schema.read_text()
        .replace(
            "from workflow_scripts.settings.training",
            "from workflow_scripts.settings.toy import Toy\nfrom workflow_scripts.settings.training",
            1,
        )
        .replace("    evaluation: Evaluation =", "    toy: Toy = Toy()\n    evaluation: Evaluation =")
    )
    (package / "settings" / "toy.py").write_text(SECTION)
    (package / "stages" / "toy_training.py").write_text(STAGE)
    experiment = finished.folder / "config" / "experiments" / "toy.yaml"
    experiment.write_text("pipeline: toy\ntoy:\n  scale: 0.9\n")
    assert plan(finished) == {}, "what was there before is as it was"
    jobs = {"toy_training toy", "evaluation toy", "experiment_summary toy", "export_toy toy"}
    assert set(plan(finished, "toy")) - {"toy"} == jobs
    finished.snakemake("--cores", "2", "toy")
    summary = finished.json("results/toy/experiment_summary.json")
    assert summary["pipeline"] == "toy" and summary["stages"]["toy_training"]["tokens_processed"] == 1
    assert "the student as it is, scaled" in finished.path("results/toy/final_toy/README.md").read_text()
    experiment.write_text("pipeline: toy\ntoy:\n  scale: 0.8\n")
    changed = plan(finished, "toy")
    assert set(changed) - {"toy"} == jobs and "'toy.scale=0.9' now: 'toy.scale=0.8'" in changed["toy_training toy"]
