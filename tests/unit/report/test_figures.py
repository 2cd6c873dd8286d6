"""Figures of many experiments with long names."""

from __future__ import annotations

from workflow_scripts.report.figures import COLOURS, DASHES, LINE, MARKERS, fold, legend_inches, row_inches, turned

SWEPT = "demo_kd-studentsmollm2-64m-pruned-alpha0_5-temperature1_0-seed0"
SHORT = ["demo_baseline", "demo_kd", "demo_sft", "demo_opd", "demo_dpo"]


def test_names_of_a_sweep_leave_room_for_what_they_name() -> None:
    lines = fold(SWEPT).splitlines()
    assert "".join(lines) == SWEPT and max(map(len, lines)) <= 30
    assert row_inches(0.5, [SWEPT, "demo_kd"]) == 1.0 + LINE * (len(lines) - 1)
    assert legend_inches(SHORT) == 0 and legend_inches([f"{SWEPT}{n}" for n in range(10)]) == 8 * LINE


def test_no_two_of_twenty_experiments_are_drawn_alike() -> None:
    styles = {(COLOURS[i % len(COLOURS)], turned(MARKERS, i), turned(DASHES, i)) for i in range(20)}
    assert len(styles) == 20
