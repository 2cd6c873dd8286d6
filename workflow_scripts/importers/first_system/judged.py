"""Attempts of a stage with what of them is known, and what follows from all of them: energies, tokens, useful and wasted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workflow_scripts.energy.uncertainty import CLASSES, instrument, propagate
from workflow_scripts.importers.first_system import checks
from workflow_scripts.importers.first_system.attempts import Attempt
from workflow_scripts.importers.first_system.checks import Tokens
from workflow_scripts.importers.first_system.emissions import Row
from workflow_scripts.importers.first_system.files import Source
from workflow_scripts.importers.first_system.report import Report
from workflow_scripts.importers.first_system.values import Figure, nested, number
from workflow_scripts.settings.schema import Uncertainty

COMPONENTS = ("gpu", "cpu", "dram")
BOUNDARY = ("gpu", "cpu")  # what the first system added up
SAMPLES_MISSED = 0.01
UNCERTAINTY = {
    checks.GPU_POWER: "nvml_power",
    checks.GPU_COUNTER: "nvml_counter",
    checks.CPU_MODEL: "codecarbon_cpu",
    checks.RAM_MODEL: "codecarbon_ram",
}


@dataclass(frozen=True)
class Judged:
    """An attempt with what of it is known: figures, tokens, and the joules of the boundary at the tokens' instant."""

    attempt: Attempt
    figures: dict[str, Figure]
    tokens: Tokens
    joules_at_tokens: float | None

    @property
    def total(self) -> float | None:
        """Joules of the known components of the boundary."""
        known = [j for name in BOUNDARY if (j := self.figures[name].joules) is not None]
        return sum(known) if known else None


def judge(
    attempt: Attempt, stage: str, config: dict[str, Any], rows: Sequence[Row], where: str, report: Report
) -> tuple[Judged, list[str]]:
    """Check an attempt; what is set to null goes into the report, remarks are returned."""
    gpu, gpu_at_file, remarks = checks.gpu(attempt, rows)
    figures = {"gpu": gpu, "cpu": checks.cpu(attempt, rows), "dram": checks.dram(attempt, rows)}
    counted = checks.tokens(attempt, stage, config)
    place = attempt.file.path if attempt.file is not None else where
    for name, figure in figures.items():
        if figure.reason is not None:
            report.add("null", place, f"{name}: {figure.reason}")
    if counted.reason is not None:
        report.add("null", place, f"tokens: {counted.reason}")
    remarks += [counted.caution] if counted.caution else []
    remarks += _sampled(attempt)
    cpu = figures["cpu"].joules or 0.0
    return Judged(attempt, figures, counted, gpu_at_file + cpu if gpu_at_file is not None else None), remarks


def _sampled(attempt: Attempt) -> list[str]:
    """Gaps of the power log; without one, how many of a record's samples are missing, and whether its own total differs."""
    if attempt.log is not None:
        gaps, seconds, joules, longest = attempt.log.gaps()
        text = f"{gaps} gaps, {seconds:.1f} s in all, the longest {longest:.1f} s; {joules:,.0f} J of its energy are in them"
        return [f"power log: {text}"] if gaps else []
    content = attempt.file.content if attempt.file is not None else {}
    samples, period = content.get("gpu_power_samples"), number(content, "nvml_poll_interval_ms")
    if not isinstance(samples, list) or not samples or not period:
        return []
    due = (attempt.end - attempt.start) * 1000 / period
    missing = 1 - len(samples) / due
    text = f"{len(samples):,} power samples of {due:,.0f}: {missing:.1%} are missing, it is not known where"
    return [text] if missing > SAMPLES_MISSED else []


@dataclass(frozen=True)
class Whole:
    """A stage over all its attempts. `joules_of_tokens` is the energy up to the instant of the token count."""

    energy: dict[str, Any]
    tokens: int | None
    unit: str | None
    joules_of_tokens: float | None
    useful_j: float | None
    wasted_j: float | None
    complete: bool
    warnings: list[str]

    @property
    def total(self) -> float | None:
        """Energy [J] over the boundary."""
        joules: float | None = self.energy["total"]["joules"]
        return joules

    @property
    def joules_per_token(self) -> float | None:
        """Of one instant; None when either is not known."""
        return self.joules_of_tokens / self.tokens if self.joules_of_tokens is not None and self.tokens else None


def whole(judged: Sequence[Judged], source: Source) -> Whole:
    """What is known of a stage with these attempts, oldest first."""
    last = judged[-1]
    tokens, why = _tokens(judged, source)
    of_tokens = _joules_of_tokens(judged) if tokens else None
    useful, wasted = _useful(judged, source)
    figures = _energy(judged)
    warnings = [f"imported from the first system: {source.folder.name}/{source.stage_id}", *_lacking(judged)]
    if figures["dram"]["joules"] is not None:
        warnings.append("dram is CodeCarbon's model and not in the total, as in the first system")
    if tokens is None:
        warnings.append(f"tokens are not known: {why}")
    total = figures["total"]["joules"]
    warnings += _own_total(judged)
    if total is not None and of_tokens is not None and abs(total - of_tokens) > 1e-6 * total:
        at, rest = f"{of_tokens:,.0f} J and {tokens:,} tokens", f"{total - of_tokens:,.0f} J"
        warnings.append(f"joules per token are those of one instant, {at}; the other {rest} came after it")
    if not last.attempt.finished:
        warnings.append("the last attempt has no final record: how much of its work was used is not known")
    if not source.environment:
        warnings.append("no environment file: host, CPU and GPUs are not known")
    if not source.config:
        warnings.append("no configuration file: seed, optimizer, budget and grid are not known")
    gpus, asked = source.environment.get("gpus") or [], str(nested(source.environment, "slurm_info.gpus"))
    if asked.isdigit() and len(gpus) > int(asked):
        warnings.append(f"{len(gpus)} GPUs were seen and the job had {asked}: those of others may be in the energy")
    return Whole(
        figures, tokens, last.tokens.unit if tokens else None, of_tokens, useful, wasted, last.attempt.finished, warnings
    )


def _own_total(judged: Sequence[Judged]) -> list[str]:
    """Totals that the files themselves state, where this boundary and these checks give another; a log goes further anyway."""
    found = []
    for one in judged:
        said = number(one.attempt.file.content, "total_energy_joules") if one.attempt.file is not None else None
        if said and one.attempt.log is None and abs((one.total or 0.0) - said) > 1e-6 * said:
            ours = "unknown" if one.total is None else f"{one.total:,.0f} J"
            found.append(f"the record's own total is {said:,.0f} J, here it is {ours}")
    return found


def _lacking(judged: Sequence[Judged]) -> list[str]:
    """Components that some attempts have no figure of."""
    found = []
    for name in COMPONENTS:
        reasons = [j.figures[name].reason for j in judged if j.figures[name].joules is None]
        some = f" of {len(reasons)} of {len(judged)} attempts" if len(reasons) < len(judged) else ""
        found += [f"{name}{some} is not known: {reasons[-1]}"] if reasons else []
    return found


def _energy(judged: Sequence[Judged]) -> dict[str, Any]:
    parts = {name: _component([j.figures[name] for j in judged]) for name in COMPONENTS}
    parts["node"] = _nothing("the first system did not ask for it", "host")
    inside = [name for name in BOUNDARY if parts[name]["joules"] is not None]
    joules = sum(parts[name]["joules"] for name in inside) if inside else None
    spread = propagate((instrument(parts[n]["method"]), parts[n]["joules"], parts[n]["uncertainty_pct"]) for n in inside)
    total = {
        "joules": joules,
        "class": max((parts[name]["class"] for name in inside), key=CLASSES.index, default="unavailable"),
        "boundary": inside,
        "uncertainty_j": spread if inside else None,
        "uncertainty_pct": 100 * spread / joules if joules else None,
        "reason": None if inside else parts["gpu"]["reason"],
    }
    return {**parts, "total": total}


def _component(figures: Sequence[Figure]) -> dict[str, Any]:
    """Sum over the attempts that have a figure, with the worst class."""
    known = [f for f in figures if f.joules is not None]
    if not known:
        return _nothing(figures[-1].reason, figures[-1].scope)
    joules = sum(f.joules for f in known if f.joules is not None)
    percent = sum((f.joules or 0.0) * _percent(f.method) for f in known) / joules
    checked = [f.crosscheck for f in known]
    return {
        "joules": joules,
        "class": max((f.energy_class for f in known), key=CLASSES.index),
        "method": known[-1].method,
        "scope": known[-1].scope,
        "uncertainty_pct": percent,
        "crosscheck": sum(c for c in checked if c is not None) if None not in checked else None,
    }


def _nothing(reason: str | None, scope: str) -> dict[str, Any]:
    return {"joules": None, "class": "unavailable", "method": None, "scope": scope, "reason": reason}


def _percent(method: str | None) -> float:
    """Half-width [%] of a method by the settings' defaults."""
    return float(getattr(Uncertainty(), UNCERTAINTY.get(method or "", "rapl")))


def _tokens(judged: Sequence[Judged], source: Source) -> tuple[int | None, str | None]:
    """Tokens of the stage, and why they are not known."""
    last = judged[-1].tokens
    if last.value is None:
        return None, last.reason
    if len(judged) > 1 and resumes(source) is not False:
        word = "resumed" if resumes(source) else "may have resumed"
        return None, f"{len(judged)} attempts, and the last {word}: how many of its tokens were new is not known"
    return last.value, None


def _joules_of_tokens(judged: Sequence[Judged]) -> float | None:
    """Energy of the boundary at the instant of the last attempt's token count, with all of the attempts before it."""
    before = [j.total for j in judged[:-1]]
    last = judged[-1].joules_at_tokens
    return sum(b for b in before if b is not None) + last if last is not None and None not in before else None


def resumes(source: Source) -> bool | None:
    """Whether the configuration let an attempt go on from a checkpoint."""
    said = [nested(source.config, f"{section}.resume_from_checkpoint") for section in ("training", "output")]
    known = [value for value in said if value is not None]
    return any(value not in (False, "None", "") for value in known) if known else None


def _useful(judged: Sequence[Judged], source: Source) -> tuple[float | None, float | None]:
    """Useful and wasted joules: known when the last attempt ended by itself and none before it was resumed."""
    totals = [j.total for j in judged]
    if not judged[-1].attempt.finished or None in totals or (len(judged) > 1 and resumes(source) is not False):
        return None, None
    known = [t for t in totals if t is not None]
    return known[-1], sum(known[:-1], 0.0)
