"""What must agree for a fair comparison, and what is refused where it does not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from workflow_scripts.accounting.costs import boundaries
from workflow_scripts.accounting.qualities import conditions, value_of
from workflow_scripts.accounting.runs import Group, group

AGREEMENT = ("kl_to_teacher", "top1_agreement")


def differences(summaries: list[dict[str, Any]]) -> list[str]:
    """What must agree for a fair comparison and does not, one line per property."""
    properties = {each.name: _properties(each) for each in group(summaries)}
    incomplete = [s["experiment_name"] for s in summaries if not s["energy"].get("complete", True)]
    lines = [f"{name}: a stage has no energy figure, so it has no total" for name in incomplete]
    for what in dict.fromkeys(what for own in properties.values() for what in own):
        values = {name: own[what] for name, own in properties.items() if what in own}
        if len(set(values.values())) > 1:
            lines.append(f"{what} differs: " + "; ".join(f"{name}: {value}" for name, value in values.items()))
    return lines


def _properties(each: Group) -> dict[str, str]:
    """Property -> value, over the runs of a group; what is not known is left out."""
    found: dict[str, list[str]] = {}
    for summary in each.runs:
        quality = summary.get("quality") or {}
        own = {
            "hardware": hardware(summary),
            "boundary": "; ".join(summary["energy"].get("boundary") or []),
            "energy class": summary["energy"].get("class"),
            "stages": _stages(summary),
            "evaluation split": (quality.get("split_sha256") or "")[:12],
            "teacher": quality.get("teacher"),
            "end of the training": _ended_by(summary),
            **(summary.get("comparable") or {}),
        }
        for what, value in own.items():
            if value not in (None, ""):
                found.setdefault(what, []).append(str(value))
    return {what: ", ".join(sorted(set(values))) for what, values in found.items()}


def _ended_by(summary: dict[str, Any]) -> str | None:
    """The key of `training` that ended the experiment's training; None where its record does not say."""
    own = (r for r in summary["stages"].values() if r.get("role") == "student" and "lineage" not in r)
    return next((ended for r in own if (ended := (r.get("metrics") or {}).get("ended_by"))), None)


def _stages(summary: dict[str, Any]) -> str:
    """Roles that are in the total, apart from the teacher's, which not every pipeline has."""
    return "+".join(role for role, entry in summary["roles"].items() if entry.get("stages") and role != "teacher")


def hardware(summary: dict[str, Any]) -> str:
    """CPUs and GPUs that the experiment's stages ran on."""
    records = summary["stages"].values()
    names = {(r.get("provenance") or {}).get("cpu") or "unknown CPU" for r in records}
    return ", ".join(sorted(names | {d.get("name") or "unknown GPU" for r in records for d in r.get("devices") or []}))


def quality_refusal(summaries: list[dict[str, Any]], quality: str) -> str | None:
    """Why the qualities of these experiments are no numbers of one scale, or None."""
    judged = {s["experiment_name"]: s["quality"] for s in summaries if value_of(s.get("quality"), quality) is not None}
    if "/" in quality:
        asked = {name: conditions(q, quality) for name, q in judged.items()}
        listed = "; ".join(f"{name}: {text}" for name, text in asked.items())
        return f"quality is not compared: {quality} was asked differently ({listed})" if len(set(asked.values())) > 1 else None
    splits = {name: q.get("split_sha256") for name, q in judged.items()}
    if len(set(splits.values())) > 1:
        listed = "; ".join(f"{name}: {(split or 'unknown')[:12]}" for name, split in splits.items())
        return f"quality is not compared: the evaluation split differs ({listed})"
    teachers = {name: q.get("teacher") for name, q in judged.items()}
    if quality in AGREEMENT and len(set(teachers.values())) > 1:
        listed = "; ".join(f"{name}: {teacher}" for name, teacher in teachers.items())
        return f"quality is not compared: {quality} is to different teachers ({listed})"
    return None


def boundary_refusal(groups: Iterable[Group], roles: tuple[str, ...] = ("teacher", "student")) -> str | None:
    """Why energies of these groups must not be subtracted from each other, or None."""
    found = boundaries(groups, roles)
    if len(found) < 2:
        return None
    listed = "; ".join(f"{boundary}: {', '.join(sorted(names))}" for boundary, names in sorted(found.items()))
    return f"refused: boundaries differ ({listed})"
