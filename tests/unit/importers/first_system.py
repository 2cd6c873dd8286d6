"""Run folders as the first system wrote them, made by hand for tests of the import."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

START = 1_700_000_000.0
KWH = 3.6e6
HEADER_3 = (
    "timestamp,project_name,run_id,experiment_id,duration,emissions,emissions_rate,cpu_power,gpu_power,ram_power,cpu_energy,"
    "gpu_energy,ram_energy,energy_consumed,water_consumed,country_name,country_iso_code,os,python_version,codecarbon_version,"
    "cpu_count,cpu_model,gpu_count,gpu_model"
)
HEADER_2 = (
    "timestamp,project_name,run_id,duration,emissions,cpu_energy,gpu_energy,ram_energy,energy_consumed,country_name,"
    "codecarbon_version"
)


def stage(
    name: str = "kd_x", start: float = START, seconds: float = 1000.0, gpu: float = 200_000.0, **more: Any
) -> dict[str, Any]:
    """A stage record: `gpu` J by samples, CodeCarbon's CPU 0.01 kWh, 50,000 tokens, and what follows from them."""
    tokens, cpu_kwh = more.get("tokens_processed", 50_000), more.get("codecarbon_cpu_energy_kwh", 0.01)
    cpu = more.get("cpu_energy_joules", cpu_kwh * KWH)
    total = gpu + cpu
    content = {
        "stage_id": name,
        "stage_name": name,
        "start_time": start,
        "end_time": start + seconds,
        "duration_seconds": seconds,
        "tokens_processed": tokens,
        "gpu_energy_joules": gpu,
        "gpu_avg_power_watts": gpu / seconds,
        "gpu_peak_power_watts": 400.0,
        "gpu_power_samples": [200.0, 201.0],
        "total_codecarbon_energy_kwh": cpu_kwh + gpu / KWH + 0.001,
        "codecarbon_emissions_kg": 0.01,
        "codecarbon_cpu_energy_kwh": cpu_kwh,
        "codecarbon_gpu_energy_kwh": gpu / KWH,
        "codecarbon_ram_energy_kwh": 0.001,
        "cpu_energy_joules": cpu,
        "total_energy_joules": total,
        "total_energy_kwh": total / KWH,
        "joules_per_token": total / tokens if tokens else 0.0,
        "kwh_total": total / KWH,
        "tokens_per_second": tokens / seconds,
        "nvml_poll_interval_ms": 500,
    }
    return content | more


def snapshot(
    step: int, name: str = "kd_x", start: float = START, seconds: float = 1000.0, gpu: float = 200_000.0, **more: Any
) -> dict[str, Any]:
    """A cumulative snapshot, in which CodeCarbon's figures are all 0."""
    zero = {key: 0.0 for key in stage() if key.startswith(("codecarbon_", "total_codecarbon")) or key == "cpu_energy_joules"}
    content = stage(name, start, seconds, gpu, **(zero | {"tokens_processed": 10 * step} | more))
    taken = datetime.fromtimestamp(content["end_time"] + 0.5 - 5 * 3600, UTC).replace(tzinfo=None)
    extra = {"snapshot": True, "snapshot_type": "checkpoint", "snapshot_step": step, "snapshot_time": taken.isoformat()}
    return extra | content | {key: more[key] for key in extra if key in more}


def config(name: str, pipeline: str = "kd", **sections: dict[str, Any]) -> dict[str, Any]:
    """A configuration file."""
    content: dict[str, Any] = {
        "experiment": {"seed": 42, "name": name, "description": "by hand"},
        "training": {
            "optimizer": "adamw",
            "schedule_type": "cosine",
            "batch_size": 2,
            "gradient_accumulation_steps": 16,
            "token_budget": 1_000_000,
            "dtype": "bfloat16",
            "resume_from_checkpoint": False,
        },
        "synthetic_data": {"max_gen_examples": 100, "generation": {"max_new_tokens": 256}},
        "energy": {"nvml_poll_interval_ms": 500, "country_iso_code": "CAN", "total_energy_policy": "measured"},
        "pipeline": pipeline,
    }
    for section, values in sections.items():
        content[section] = {**content.get(section, {}), **values}
    return {"stage_name": name, "stage_id": name, "config": content}


def environment(host: str = "node1", gpus: int = 1) -> dict[str, Any]:
    """An environment file."""
    gpu = {"name": "NVIDIA H100 80GB HBM3", "driver_version": "570.1", "power_limit_watts": 700.0}
    return {
        "hostname": host,
        "gpus": [{"index": i, **gpu} for i in range(gpus)],
        "cpu": {"brand": "Some CPU", "logical_cores": 48},
        "software": {"python_version": "3.10.13", "pytorch_version": "2.6.0", "transformers_version": "4.51.3"},
        "git_info": {"commit_hash": "abc", "is_dirty": True},
        "slurm_info": {"job_id": "7", "gpus": "1"},
    }


def summary(name: str, *stages: dict[str, Any], local_hours: float = -5.0) -> dict[str, Any]:
    """An experiment summary, whose times are local; its stages lack the samples."""
    end = datetime.fromtimestamp(max(s["end_time"] for s in stages) + 9 + local_hours * 3600, UTC).replace(tzinfo=None)
    kept = {
        s["stage_id"]: {k: v for k, v in s.items() if k not in ("gpu_power_samples", "nvml_poll_interval_ms")} for s in stages
    }
    return {"experiment_id": f"{name}_1", "experiment_name": name, "end_time": end.isoformat(), "stages": kept}


def write(
    folder: Path, *records: dict[str, Any], settings: dict[str, Any] | None = None, host: str | None = "node1", **files: Any
) -> Path:
    """Write a stage folder: records by their names in the first system, and the files that are given by name."""
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        suffix = f"__step_{record['snapshot_step']}" if record.get("snapshot") else ""
        (folder / f"{record['stage_id']}{suffix}.json").write_text(json.dumps(record))
    name = records[0]["stage_id"] if records else folder.name
    if settings is not None:
        (folder / f"config_{name}__{name}.json").write_text(json.dumps(settings))
    if host is not None:
        (folder / f"environment_{name}__{name}.json").write_text(json.dumps(environment(host)))
    for file, content in files.items():
        (folder / f"{file}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def power_log(path: Path, samples: Iterable[tuple[float, float]], header: bool = True) -> None:
    """Write a power log of one GPU."""
    lines = ["timestamp,gpu_0_power_w,total_power_w"] if header else []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, *(f"{t},{w},{w}" for t, w in samples)]) + "\n")


def row(project: str, run_id: str, local_end: str, seconds: float, cpu: float, gpu: float, version: int = 3) -> str:
    """A line of emissions.csv; energies in kWh."""
    total = cpu + gpu + 0.001
    if version == 2:
        return f"{local_end},{project},{run_id},{seconds},0.01,{cpu},{gpu},0.001,{total},Canada,2.4.1"
    facts = "Canada,CAN,Linux,3.11.5,3.2.1,16,Other CPU,1,1 x NVIDIA H100 80GB HBM3"
    return f"{local_end},{project},{run_id},e,{seconds},0.01,1e-6,20,400,10,{cpu},{gpu},0.001,{total},0.0,{facts}"


def emissions(path: Path, *rows: str, header: str | None = HEADER_3) -> None:
    """Write an emissions.csv."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*([header] if header else []), *rows]) + "\n")
