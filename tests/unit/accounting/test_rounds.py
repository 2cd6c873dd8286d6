"""What rounds of on-policy distillation cost: only the teacher's work of the first one is there to be reused."""

from __future__ import annotations

import pytest

from tests.helpers.summaries import read, stage, summary
from workflow_scripts.accounting.arms import Axis, arm_of
from workflow_scripts.accounting.groups import Group
from workflow_scripts.accounting.rows import ExperimentRow, users
from workflow_scripts.energy.uncertainty import KWH

STAGES = {
    "rollout": stage(10.0, "student", "r1"),
    "logit_caching": stage(100.0, "teacher", "c1"),
    "student_train_round1": stage(200.0, "student", "t1"),
    "rollout_round2": stage(20.0, "student", "r2"),
    "logit_caching_round2": stage(70.0, "teacher", "c2"),
    "student_train": stage(300.0, "student", "t2"),
}
ON_THE_WAY = {
    "count": 1,
    "seconds": 1.0,
    "joules": 5.0,
    "reason": None,
    "points": [{"step": 3, "eval_loss": 3.5, "training_joules": 40.0}],
}


def test_teacher_of_later_rounds_and_earlier_trainings_are_in_the_energy_to_a_quality() -> None:
    opd = read(summary("opd", "opd", STAGES, evaluations_on_the_way=ON_THE_WAY))
    assert list(opd.unshared) == ["logit_caching_round2"] and opd.used_share == 1.0
    assert opd.method_energy.value == pytest.approx(700.0 - 5) and opd.training.provenance.fingerprint == "t2"
    arm = arm_of(Group("opd", [opd]), Axis("cross_entropy", 1.0))
    assert [joules for joules, _ in arm.teacher] == [100.0]
    (found,) = arm.runs
    earlier = 10 + 200 + 20 + 70
    assert found.joules.tolist() == pytest.approx([earlier + 40, earlier + 300 - 5]) and found.loss.tolist() == [3.5, 3.0]
    assert found.whole == pytest.approx(earlier + 300 - 5)
    assert "logit_caching_round2: made for this experiment's own policies" in " ".join(opd.warnings)


def test_tokens_and_seconds_of_the_training_are_those_of_all_rounds() -> None:
    rounds = {name: STAGES[name] | {"tokens_processed": 150} for name in ("student_train_round1", "student_train")}
    opd = read(summary("opd", "opd", STAGES | rounds))
    assert [stage.provenance.fingerprint for stage in opd.trainings] == ["t1", "t2"] and opd.total_tokens_processed == 300
    assert ExperimentRow.of(opd, "opd", users([opd])).column("training_s") == 20.0


def test_a_later_round_without_a_figure_leaves_no_arm() -> None:
    opd = read(summary("opd", "opd", STAGES | {"logit_caching_round2": stage(None, "teacher", "c2")}))
    assert arm_of(Group("opd", [opd]), Axis("cross_entropy", 1.0)) is None


def test_evaluations_start_up_and_saves_of_earlier_rounds_stand_apart_as_those_of_the_last_do() -> None:
    phases = {"start": 20.0, "work": 120.0, "evaluate": 50.0, "save": 10.0}
    told = {name: {"seconds": 1.0, "joules": joules, "tokens": 0} for name, joules in phases.items()}
    last = told | {
        name: {"seconds": 1.0, "joules": joules, "tokens": 0} for name, joules in (("work", 265.0), ("evaluate", 5.0))
    }
    stages = STAGES | {"student_train_round1": stage(200.0, "student", "t1", phases=told)}
    stages |= {"student_train": stage(300.0, "student", "t2", phases=last)}
    point = ON_THE_WAY["points"][0] | {"training_joules": 60.0, "work_joules": 40.0}
    opd = read(summary("opd", "opd", stages, evaluations_on_the_way=ON_THE_WAY | {"points": [point]}))
    assert opd.method_energy.value == pytest.approx(700.0 - 5 - 50) and sum(opd.evaluating_kwh) * KWH == pytest.approx(55)
    (found,) = arm_of(Group("opd", [opd]), Axis("cross_entropy", 1.0), apart=True).runs
    (coarse,) = arm_of(Group("opd", [opd]), Axis("cross_entropy", 1.0)).runs
    earlier = 10 + 120 + 20 + 70
    assert found.joules.tolist() == pytest.approx([earlier + 40, earlier + 265])
    assert coarse.joules.tolist() == pytest.approx([earlier + 30 + 60, earlier + 30 + 300 - 5])
    assert found.whole == coarse.whole == pytest.approx(10 + 150 + 20 + 70 + 300 - 5)
