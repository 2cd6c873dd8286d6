"""The qualities that an evaluation can be judged by: its own fields, and metrics of lm-eval tasks as `<task>/<metric>`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

LOWER_IS_BETTER = {"cross_entropy": True, "kl_to_teacher": True, "top1_agreement": False}
CONDITIONS = ("examples", "shots", "version")


def task_metrics(evaluation: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Entries of the lm-eval metrics of an evaluation by name."""
    found: dict[str, dict[str, Any]] = ((evaluation or {}).get("tasks") or {}).get("metrics") or {}
    return found


def value_of(evaluation: dict[str, Any] | None, quality: str) -> float | None:
    """A quality of an evaluation; None where it has none."""
    if quality in LOWER_IS_BETTER:
        return (evaluation or {}).get(quality)
    return task_metrics(evaluation).get(quality, {}).get("value")


def known(summaries: Iterable[dict[str, Any]]) -> list[str]:
    """Every quality that one of the experiments has."""
    tasks = {name for s in summaries for name in task_metrics(s.get("quality"))}
    return [*LOWER_IS_BETTER, *sorted(tasks)]


def lower_is_better(summaries: Iterable[dict[str, Any]], quality: str) -> bool:
    """Direction of a quality; a task says its own."""
    if quality in LOWER_IS_BETTER:
        return LOWER_IS_BETTER[quality]
    entries = [e for s in summaries if (e := task_metrics(s.get("quality")).get(quality))]
    return any(entry.get("higher_is_better") is False for entry in entries)


def conditions(evaluation: dict[str, Any] | None, quality: str) -> str:
    """What values of a task's metric are comparable under, in words."""
    tasks, entry = (evaluation or {}).get("tasks") or {}, task_metrics(evaluation).get(quality, {})
    said = [f"{key} {entry.get(key)}" for key in CONDITIONS]
    return ", ".join([*said, f"chat template {tasks.get('chat_template')}"])
