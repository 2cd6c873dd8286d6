"""What of a stage's figures can be true: each comes with its class, or with the reason why it is not known.

The first system took the GPU's energy from NVML power samples, the CPU's from RAPL read at start and end, else from CodeCarbon,
whatever its label `measured` says, and in a snapshot from the row of an earlier attempt, as CodeCarbon writes at the end only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from workflow_scripts.accounting.model import sum_of
from workflow_scripts.energy.model import Component, EnergyClass
from workflow_scripts.energy.uncertainty import KWH
from workflow_scripts.importers.first_system.files import Attempt, Source, Written
from workflow_scripts.importers.first_system.logs import Row
from workflow_scripts.importers.first_system.values import Report, local_time, nested, zone_offset
from workflow_scripts.settings.schema import Uncertainty

Scope = Literal["device", "host", "job"]
GPU_POWER, GPU_COUNTER = "NVML power over time", "NVML total energy counter, read by CodeCarbon"
CPU_MODEL, RAM_MODEL, RAPL = "CodeCarbon", "CodeCarbon RAM model", "RAPL at start and end"
METHODS: dict[str, tuple[EnergyClass, float]] = {  # with the half-width [%] by the settings' defaults
    GPU_POWER: ("integrated", Uncertainty().nvml_power),
    GPU_COUNTER: ("measured", Uncertainty().nvml_counter),
    CPU_MODEL: ("modelled", Uncertainty().codecarbon_cpu),
    RAM_MODEL: ("modelled", Uncertainty().codecarbon_ram),
    RAPL: ("measured", Uncertainty().rapl),
}
BOUNDARY = ("gpu", "cpu")  # what the first system added up
LOG_AGREES = 0.01
SAMPLES_MISSED = 0.01
SAME_FIGURE = 1e-6
OTHER_ATTEMPT = 0.2  # CodeCarbon's GPU counter and the samples agree far better over the same time
SAME_INSTANT_S = 30.0
RAPL_WRAPS_J, RAPL_LARGEST_W = 65_532.610987, 500.0  # smallest range of a package zone, largest power of a package


@dataclass(frozen=True)
class Judged:
    """An attempt with what of it is known: energies by component, tokens of a loss, the boundary's joules at their instant.

    `no_tokens` says why there are none. `codecarbon` has CodeCarbon's figures of this very attempt by column [kWh, kg].
    """

    attempt: Attempt
    figures: dict[str, Component]
    total: float | None  # of the boundary's known components [J]
    tokens: int | None
    no_tokens: str | None
    joules_at_tokens: float | None
    codecarbon: Mapping[str, float | None]
    remarks: list[str]


def judge(attempt: Attempt, stage: str, source: Source, report: Report) -> Judged:
    """Check an attempt; what is set to null goes into the report as well."""
    stale = _stale(attempt, source.rows)
    codecarbon = _codecarbon(attempt, stale)
    gpu, gpu_at_file, remarks = _gpu(attempt, codecarbon.get("gpu_energy"))
    dram = _modelled(attempt, codecarbon.get("ram_energy"), RAM_MODEL, stale if attempt.row is None else None)
    figures = {"gpu": gpu, "cpu": _cpu(attempt, stale), "dram": dram}
    total = sum_of([j for name in BOUNDARY if (j := figures[name].joules) is not None])
    no_tokens = _no_tokens(attempt, stage, source)
    tokens = int(attempt.said.tokens_processed or 0) if no_tokens is None else None
    place = attempt.file.path if attempt.file is not None else f"{source.folder} ({source.stage_id})"
    reasons = {name: figure.reason for name, figure in figures.items()} | {"tokens": no_tokens}
    for name, reason in reasons.items():
        if reason is not None:
            report.add("set to null", place, f"{name}: {reason}")
    if tokens is not None and (unsure := _other_instant(attempt.said, source.zone)[1]):
        remarks.append(unsure)
    remarks += attempt.file.odd if attempt.file is not None else ()
    if _scope(attempt) == "host":
        remarks.append("CodeCarbon modelled CPU and RAM of the whole host (tracking_mode machine)")
    at_tokens = gpu_at_file + (figures["cpu"].joules or 0.0) if gpu_at_file is not None else None
    return Judged(attempt, figures, total, tokens, no_tokens, at_tokens, codecarbon, [*remarks, *_sampled(attempt)])


def unknown(reason: str | None, scope: Scope) -> Component:
    """A figure that is not known."""
    return Component(joules=None, energy_class="unavailable", method=None, scope=scope, reason=reason)


def _figure(joules: float, method: str, scope: Scope, crosscheck: float | None = None) -> Component:
    worth, pct = METHODS[method]
    return Component(joules=joules, energy_class=worth, method=method, scope=scope, uncertainty_pct=pct, crosscheck=crosscheck)


def _scope(attempt: Attempt) -> Scope:
    """What CodeCarbon modelled, as the attempt's row says."""
    return "host" if attempt.row is not None and attempt.row.cells.get("tracking_mode") == "machine" else "job"


def _modelled(attempt: Attempt, kwh: float | None, method: str, reason: str | None) -> Component:
    """CodeCarbon's figure of CPU or RAM; it is not known for a `reason`, or as none was kept."""
    if kwh:
        return _figure(kwh * KWH, method, _scope(attempt))
    if reason is None:
        part = "RAM" if method == RAM_MODEL else "CPU"
        reason = f"no {part} figure was kept" if attempt.row is None else f"CodeCarbon's row has no {part} figure"
    return unknown(f"{reason} (0, which no running host uses)" if kwh == 0 else reason, _scope(attempt))


def _sampled(attempt: Attempt) -> list[str]:
    """Gaps of the power log; without one, how many of a record's samples are missing."""
    if attempt.log is not None:
        gaps, seconds, joules, longest = attempt.log.gaps()
        text = f"{gaps} gaps, {seconds:.1f} s in all, the longest {longest:.1f} s; {joules:,.0f} J of its energy are in them"
        return [f"power log: {text}"] if gaps else []
    samples, period = attempt.said.gpu_power_samples, attempt.said.nvml_poll_interval_ms
    due = attempt.seconds * 1000 / period if period else 0.0
    if not samples or not due or 1 - samples / due <= SAMPLES_MISSED:
        return []
    return [f"{samples:,} power samples of {due:,.0f}: {1 - samples / due:.1%} are missing, it is not known where"]


def _gpu(attempt: Attempt, counter_kwh: float | None) -> tuple[Component, float | None, list[str]]:
    """Energy of the GPUs over the whole attempt, that up to the instant of its file [J], and remarks.

    A power log is preferred, as it goes on after the last snapshot; where it does not agree with the file, the file is.
    """
    log, said = attempt.log, attempt.said.gpu_energy_joules or 0.0
    crosscheck = counter_kwh * KWH if counter_kwh else None
    from_file = _figure(said, GPU_POWER, "device", crosscheck)
    if log is None:
        if said > 0:
            return from_file, said, []
        if crosscheck is not None:
            return _figure(crosscheck, GPU_COUNTER, "device"), crosscheck, []
        zero = "gpu_energy_joules is 0 or missing, and there is no power log"
        return unknown("CodeCarbon's row has no GPU figure" if attempt.file is None else zero, "device"), None, []
    at_file = log.joules_until(attempt.file.rank[0]) if attempt.file is not None else None
    remarks = []
    if said > 0 and at_file is not None:
        apart = abs(at_file / said - 1)
        if apart > LOG_AGREES:
            text = f"the power log gives {at_file:,.0f} J up to the record's end, the record {said:,.0f} J, which is used"
            return from_file, said, [text]
        remarks.append(f"power log and record agree up to the record's end to {apart:.1g}")
    return _figure(max(log.joules, at_file or 0.0), GPU_POWER, "device", crosscheck), at_file, remarks


def _cpu(attempt: Attempt, stale: str | None) -> Component:
    """Energy of the CPU: modelled where it is CodeCarbon's; RAPL's only where its counter cannot have wrapped unseen."""
    in_row = attempt.row.figures["cpu_energy"] if attempt.row is not None else None
    said, modelled = attempt.said.cpu_energy_joules, attempt.said.codecarbon_cpu_energy_kwh
    problem = _equal_at_every_step(attempt, "cpu_energy_joules")
    if attempt.file is None or problem is not None:
        return _modelled(attempt, in_row, CPU_MODEL, problem)
    if said is None:
        problem = "cpu_energy_joules is missing"
    elif said <= 0:
        problem = f"cpu_energy_joules = {said}: that is no energy of a CPU that ran"
    elif modelled is None:
        problem = "nothing says whether the CPU figure is RAPL's or CodeCarbon's"
    elif math.isclose(said, modelled * KWH, rel_tol=SAME_FIGURE):
        if stale is None:
            return _figure(said, CPU_MODEL, _scope(attempt))
        problem = stale
    elif attempt.seconds < RAPL_WRAPS_J / RAPL_LARGEST_W:
        return _figure(said, RAPL, "host")
    wraps = f"RAPL was read at its ends only: over {attempt.seconds:,.0f} s its counter may have wrapped any number of times"
    return _modelled(attempt, in_row, CPU_MODEL, problem or wraps)


def _codecarbon(attempt: Attempt, stale: str | None) -> Mapping[str, float | None]:
    """CodeCarbon's figures of its own row, else of a file that was written at its end; none where they are `stale`."""
    if attempt.row is not None:
        return attempt.row.figures
    if stale is not None:
        return {}
    said = attempt.said
    return {
        "gpu_energy": said.codecarbon_gpu_energy_kwh,
        "ram_energy": said.codecarbon_ram_energy_kwh,
        "energy_consumed": said.total_codecarbon_energy_kwh or said.codecarbon_energy_kwh,
        "emissions": said.codecarbon_emissions_kg,
    }


def _stale(attempt: Attempt, rows: Sequence[Row]) -> str | None:
    """Why CodeCarbon's figures in an attempt's file are not this attempt's, or None."""
    if attempt.file is None:
        return None
    if attempt.file.snapshot:
        return "CodeCarbon writes at the end: in a snapshot its figures are 0 or an earlier attempt's"
    if equal := _equal_at_every_step(attempt, "codecarbon_cpu_energy_kwh"):
        return equal
    said = attempt.said.codecarbon_cpu_energy_kwh
    for row in rows:
        if said and row.figures["cpu_energy"] == said and row is not attempt.row:
            which = f"CodeCarbon's run {row.run_id}, which took {row.duration_s:,.0f} s"
            return f"its CPU figure is that of {which}: another attempt"
    samples, counter = attempt.said.gpu_energy_joules, attempt.said.codecarbon_gpu_energy_kwh
    if samples and counter and abs(counter * KWH / samples - 1) > OTHER_ATTEMPT:
        found = f"{counter * KWH:,.0f} J where the samples give {samples:,.0f} J"
        return f"CodeCarbon's GPU figure beside it is {found}: another attempt's row"
    return None


def _equal_at_every_step(attempt: Attempt, key: str) -> str | None:
    """A cumulative figure cannot stay the same while a stage goes on."""
    ends = [attempt.file] if attempt.finished and attempt.file is not None else []
    values = [getattr(file.said, key) for file in (*attempt.snapshots, *ends)]
    if len(values) < 2 or values[0] is None or len(set(values)) > 1:
        return None
    steps = ", ".join(str(f.step) for f in attempt.snapshots[:4])
    return f"{key} = {values[0]:g} at every step ({steps}{', …' if len(attempt.snapshots) > 4 else ''}): it did not count"


def _no_tokens(attempt: Attempt, stage: str, source: Source) -> str | None:
    """Why the tokens of an attempt at the instant of its file are not known: of a generation, its padding was counted."""
    claimed = attempt.said.tokens_processed
    if attempt.file is None:
        return "no record says how many tokens"
    if claimed is None:
        return "tokens_processed is missing"
    if stage == "preprocess":
        return f"tokens_processed = {claimed:,.0f}: preprocessing counted examples, not tokens"
    if claimed <= 0 or claimed != int(claimed):
        return f"tokens_processed = {claimed:g}: energy was spent, so the count is missing, not {claimed:g}"
    if stage != "teacher_generation":
        return _other_instant(attempt.said, source.zone)[0] or _no_course(attempt)
    texts = source.config.get("synthetic_data")
    new, prompts = nested(texts, "generation.max_new_tokens"), nested(texts, "max_gen_examples")
    known = isinstance(new, int) and isinstance(prompts, int) and prompts > 0
    per_prompt = f" ({claimed / prompts:.0f} per prompt of {prompts:,}, at max_new_tokens = {new})" if known else ""
    return f"tokens_processed = {claimed:,.0f}{per_prompt}: the first system counted padded positions as generated tokens"


def _other_instant(said: Written, zone: Mapping[float, int]) -> tuple[str | None, str | None]:
    """Why tokens and energy cannot be of one instant, and what of that is not known.

    The zone of a snapshot's local time is the one that most of the other files have; two of them may differ by summer time.
    """
    rate, joules, end, claimed = said.joules_per_token, said.total_energy_joules, said.end_time, said.tokens_processed or 0.0
    pair = f"tokens_processed = {claimed:,.0f} and its energy are not of one instant"
    if rate and joules and not math.isclose(rate * claimed, joules, rel_tol=1e-3):
        return f"{pair}: the record's own joules_per_token = {rate:.4g} does not follow from them and {joules:,.0f} J", None
    taken = local_time(said.snapshot_time)
    if taken is None or end is None:
        return None, None
    offset, rest = zone_offset(taken, end)
    others = {other: n for other, files in zone.items() if (n := files - (other == offset)) > 0}
    if not others:
        wrong = f"{pair}: snapshot_time and end_time are {abs(rest):.0f} s or more apart"
        unsure = "the time zone of snapshot_time is not known: whether tokens and energy are of one instant is not, either"
        return (wrong if abs(rest) > SAME_INSTANT_S else None), unsure
    usual = max(others, key=lambda other: (others[other], -abs(other - offset)))
    apart = min(abs(taken - end - other) for other in others if abs(other - usual) in (0.0, 3600.0))
    return (f"{pair}: snapshot_time and end_time are {apart:,.0f} s apart" if apart > SAME_INSTANT_S else None), None


def _no_course(attempt: Attempt) -> str | None:
    """Counts that do not rise with the steps while the energy does."""
    known = [(f.step, count) for f in attempt.snapshots if (count := f.said.tokens_processed) is not None]
    if len(known) > 1 and len({count for _, count in known}) == 1:
        return f"tokens_processed = {known[0][1]:,.0f} at every step while energy was spent: they are of different instants"
    for (step, count), (later, next_count) in itertools.pairwise(known):
        if next_count < count:
            return f"tokens_processed falls from {count:,.0f} at step {step} to {next_count:,.0f} at step {later}"
    return None
