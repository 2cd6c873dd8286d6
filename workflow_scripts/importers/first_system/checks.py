"""What of a stage's figures can be true: each comes with its class, or with the reason why it is not known.

The first system took the GPU's energy from NVML power samples, the CPU's from RAPL read at start and end, else from CodeCarbon,
whatever its label `measured` says, and in a snapshot from the row of an earlier attempt, as CodeCarbon writes at the end only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workflow_scripts.importers.first_system.attempts import Attempt
from workflow_scripts.importers.first_system.emissions import Row
from workflow_scripts.importers.first_system.files import StageFile
from workflow_scripts.importers.first_system.values import Figure, local_time, nested, number, unknown, zone_offset

KWH = 3.6e6
GPU_POWER, GPU_COUNTER = "NVML power over time", "NVML total energy counter, read by CodeCarbon"
CPU_MODEL, RAM_MODEL, RAPL = "CodeCarbon", "CodeCarbon RAM model", "RAPL at start and end"
LOG_AGREES = 0.01
SAME_FIGURE = 1e-6
OTHER_ATTEMPT = 0.2  # CodeCarbon's GPU counter and the samples agree far better over the same time
SAME_INSTANT_S = 30.0
RAPL_WRAPS_J, RAPL_LARGEST_W = 65_532.610987, 500.0  # smallest range of a package zone, largest power of a package
UNITS = {"teacher_generation": "generated"}


@dataclass(frozen=True)
class Tokens:
    """Tokens of an attempt by their kind, or None with the reason; `claimed` is what the file says."""

    value: int | None
    unit: str | None
    reason: str | None = None
    claimed: float | None = None
    caution: str | None = None


def gpu(attempt: Attempt, rows: Sequence[Row]) -> tuple[Figure, float | None, list[str]]:
    """Energy of the GPUs over the whole attempt, that up to the instant of its file [J], and remarks.

    A power log is preferred, as it goes on after the last snapshot; where it does not agree with the file, the file is.
    """
    said = number(attempt.file.content, "gpu_energy_joules") if attempt.file is not None else None
    counter = own_codecarbon(attempt, rows).get("gpu_energy")
    if said is None or said <= 0:
        said = None
    if attempt.log is None and said is None:
        if counter:
            return Figure(counter * KWH, "measured", GPU_COUNTER, "device"), counter * KWH, []
        zero = "gpu_energy_joules is 0 or missing, and there is no power log"
        return unknown("CodeCarbon's row has no GPU figure" if attempt.file is None else zero, "device"), None, []
    crosscheck = counter * KWH if counter else None
    if attempt.log is None:
        return Figure(said, "integrated", GPU_POWER, "device", crosscheck=crosscheck), said, []
    end = attempt.file_end
    at_file = attempt.log.joules_until(end) if end is not None else None
    remarks = []
    if said is not None and at_file is not None:
        if abs(at_file / said - 1) > LOG_AGREES:
            text = f"the power log gives {at_file:,.0f} J up to the record's end, the record {said:,.0f} J, which is used"
            return Figure(said, "integrated", GPU_POWER, "device", crosscheck=crosscheck), said, [text]
        remarks.append(f"power log and record agree up to the record's end to {abs(at_file / said - 1):.1g}")
    whole = max(attempt.log.joules, at_file or 0.0)
    return Figure(whole, "integrated", GPU_POWER, "device", crosscheck=crosscheck), at_file, remarks


def cpu(attempt: Attempt, rows: Sequence[Row]) -> Figure:
    """Energy of the CPU: modelled where it is CodeCarbon's; RAPL's only where its counter cannot have wrapped unseen."""
    own_row = attempt.row.kwh["cpu_energy"] if attempt.row is not None else None
    if attempt.file is None:
        return _modelled(
            own_row, CPU_MODEL, "no CPU figure was kept" if attempt.row is None else "CodeCarbon's row has no CPU figure"
        )
    content = attempt.file.content
    said, modelled = number(content, "cpu_energy_joules"), number(content, "codecarbon_cpu_energy_kwh")
    equal = _equal_at_every_step(attempt, "cpu_energy_joules")
    if said is None or said <= 0:
        zero = f"cpu_energy_joules = {said}: that is no energy of a CPU that ran"
        return _modelled(own_row, CPU_MODEL, equal or ("cpu_energy_joules is missing" if said is None else zero))
    if modelled is None:
        return _modelled(own_row, CPU_MODEL, equal or "nothing says whether the CPU figure is RAPL's or CodeCarbon's")
    if math.isclose(said, modelled * KWH, rel_tol=SAME_FIGURE):
        problem = equal or stale(attempt, rows)
        return _modelled(own_row, CPU_MODEL, problem) if problem else Figure(said, "modelled", CPU_MODEL, "job")
    seconds = attempt.end - attempt.start
    if equal is None and seconds < RAPL_WRAPS_J / RAPL_LARGEST_W:
        return Figure(said, "measured", RAPL, "host")
    why = f"RAPL was read at start and end only: over {seconds:,.0f} s its counter may have wrapped any number of times"
    return _modelled(own_row, CPU_MODEL, equal or why)


def dram(attempt: Attempt, rows: Sequence[Row]) -> Figure:
    """CodeCarbon's RAM model; the first system left it out of its totals."""
    reason = "no RAM figure was kept" if attempt.row is None else "CodeCarbon's row has no RAM figure"
    if attempt.row is None:
        reason = stale(attempt, rows) or reason
    return _modelled(own_codecarbon(attempt, rows).get("ram_energy"), RAM_MODEL, reason)


def own_codecarbon(attempt: Attempt, rows: Sequence[Row]) -> dict[str, float | None]:
    """CodeCarbon's figures [kWh] and emissions [kg] of this very attempt, by the names of its columns.

    They are those of its own row, else of a file that was written at its end; empty where they are another attempt's.
    """
    if attempt.row is not None:
        return {**attempt.row.kwh, "emissions": attempt.row.emissions_kg}
    if attempt.file is None or stale(attempt, rows) is not None:
        return {}
    content = attempt.file.content
    found = {f"{part}_energy": number(content, f"codecarbon_{part}_energy_kwh") for part in ("cpu", "gpu", "ram")}
    consumed = number(content, "total_codecarbon_energy_kwh") or number(content, "codecarbon_energy_kwh")
    return {**found, "energy_consumed": consumed, "emissions": number(content, "codecarbon_emissions_kg")}


def stale(attempt: Attempt, rows: Sequence[Row]) -> str | None:
    """Why CodeCarbon's figures in an attempt's file are not this attempt's, or None."""
    if attempt.file is None:
        return None
    content = attempt.file.content
    said = number(content, "codecarbon_cpu_energy_kwh")
    if attempt.file.snapshot:
        return "CodeCarbon writes at the end: in a snapshot its figures are 0 or an earlier attempt's"
    equal = _equal_at_every_step(attempt, "codecarbon_cpu_energy_kwh")
    if equal is not None:
        return equal
    for row in rows:
        if said and row.kwh["cpu_energy"] == said and row is not attempt.row:
            return (
                f"its CPU figure is that of CodeCarbon's run {row.run_id}, which took {row.duration_s:,.0f} s: another attempt"
            )
    samples, counter = number(content, "gpu_energy_joules"), number(content, "codecarbon_gpu_energy_kwh")
    if samples and counter and abs(counter * KWH / samples - 1) > OTHER_ATTEMPT:
        found = f"{counter * KWH:,.0f} J where the samples give {samples:,.0f} J"
        return f"CodeCarbon's GPU figure beside it is {found}: another attempt's row"
    return None


def _equal_at_every_step(attempt: Attempt, key: str) -> str | None:
    """A cumulative figure cannot stay the same while a stage goes on."""
    values = [
        number(f.content, key) for f in (*attempt.snapshots, *([attempt.file] if attempt.finished and attempt.file else []))
    ]
    if len(values) < 2 or values[0] is None or len(set(values)) > 1:
        return None
    steps = ", ".join(str(f.step) for f in attempt.snapshots[:4])
    return f"{key} = {values[0]:g} at every step ({steps}{', …' if len(attempt.snapshots) > 4 else ''}): it did not count"


def _modelled(kwh: float | None, method: str, reason: str) -> Figure:
    if not kwh:
        return unknown(f"{reason} (0, which no running host uses)" if kwh == 0 else reason, "job")
    return Figure(kwh * KWH, "modelled", method, "job")


def tokens(attempt: Attempt, stage: str, config: Mapping[str, Any]) -> Tokens:
    """Tokens of an attempt at the instant of its file, typed by what the first system counted in such a stage."""
    unit = UNITS.get(stage, "loss")
    if attempt.file is None:
        return Tokens(None, None, "no record says how many tokens")
    claimed = number(attempt.file.content, "tokens_processed")
    if claimed is None:
        return Tokens(None, None, "tokens_processed is missing")
    reason = (
        _no_count(claimed, stage)
        or _too_many(claimed, stage, config)
        or _other_instant(attempt.file, claimed)
        or _no_course(attempt)
    )
    if reason is not None:
        return Tokens(None, None, reason, claimed)
    unchecked = stage == "teacher_generation" and _most_tokens(config) is None
    caution = "max_new_tokens or the number of prompts is not known: the count may hold padding" if unchecked else None
    return Tokens(int(claimed), unit, None, claimed, caution)


def _no_count(claimed: float, stage: str) -> str | None:
    if stage == "preprocess":
        return f"tokens_processed = {claimed:,.0f}: preprocessing counted examples, not tokens"
    if claimed <= 0 or claimed != int(claimed):
        return f"tokens_processed = {claimed:g}: energy was spent, so the count is missing, not {claimed:g}"
    return None


def _most_tokens(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """max_new_tokens and the number of prompts, where both are known."""
    new, prompts = nested(config, "synthetic_data.generation.max_new_tokens"), nested(config, "synthetic_data.max_gen_examples")
    return (new, prompts) if isinstance(new, int) and isinstance(prompts, int) and new > 0 and prompts > 0 else None


def _too_many(claimed: float, stage: str, config: Mapping[str, Any]) -> str | None:
    bound = _most_tokens(config) if stage == "teacher_generation" else None
    if bound is None or claimed <= bound[0] * bound[1]:
        return None
    return (
        f"tokens_processed = {claimed:,.0f} is {claimed / bound[1]:.0f} per prompt of {bound[1]:,}, at "
        f"max_new_tokens = {bound[0]}: padded positions were counted"
    )


def _other_instant(file: StageFile, claimed: float) -> str | None:
    """Tokens and energy that cannot be of one instant."""
    content = file.content
    pair = f"tokens_processed = {claimed:,.0f} and its energy are not of one instant"
    rate, joules = number(content, "joules_per_token"), number(content, "total_energy_joules")
    if rate and joules and not math.isclose(rate * claimed, joules, rel_tol=1e-3):
        return f"{pair}: the record's own joules_per_token = {rate:.4g} does not follow from them and {joules:,.0f} J"
    taken, end = local_time(content.get("snapshot_time")), number(content, "end_time")
    if taken is not None and end is not None and abs(rest := zone_offset(taken, end)[1]) > SAME_INSTANT_S:
        return f"{pair}: snapshot_time and end_time are {abs(rest):.0f} s apart"
    return None


def _no_course(attempt: Attempt) -> str | None:
    """Counts that do not rise with the steps while the energy does."""
    counts = [(f.step, c) for f in attempt.snapshots if (c := number(f.content, "tokens_processed")) is not None]
    if len(counts) > 1 and len({c for _, c in counts}) == 1:
        return f"tokens_processed = {counts[0][1]:,.0f} at every step while energy was spent: they are of different instants"
    for (step, count), (later, next_count) in itertools.pairwise(counts):
        if next_count < count:
            return f"tokens_processed falls from {count:,.0f} at step {step} to {next_count:,.0f} at step {later}"
    return None
