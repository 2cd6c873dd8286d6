"""Where a stage of the first system ran, as far as its environment file or CodeCarbon's rows say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workflow_scripts.importers.first_system.attempts import Attempt
from workflow_scripts.importers.first_system.files import Source
from workflow_scripts.importers.first_system.values import nested

PACKAGES = {"pytorch_version": "torch", "transformers_version": "transformers"}


def host_of(source: Source, attempt: Attempt) -> str:
    """Host's name; where it was not kept, one that no other stage has, as sensors of two hosts do not err together."""
    named = source.environment.get("hostname")
    if named and attempt.file is not None:
        return str(named)
    return f"unknown host of {source.folder.name}/{source.stage_id}"


def devices(source: Source, attempts: Sequence[Attempt]) -> list[dict[str, Any]]:
    """GPUs. No UUID was kept: host and index stand for it, else errors of different cards would seem common."""
    host = host_of(source, attempts[-1])
    found = []
    for gpu in source.environment.get("gpus") or []:
        if isinstance(gpu, dict):
            found.append(
                {
                    "uuid": f"not recorded: {host} index {gpu.get('index')}",
                    "name": gpu.get("name"),
                    "power_limit_w": gpu.get("power_limit_watts"),
                    "driver": gpu.get("driver_version"),
                }
            )
    model = next((a.row.facts.get("gpu_model") for a in attempts if a.row is not None), None)
    if not found and model:
        found.append({"uuid": f"not recorded: {host}", "name": model.partition(" x ")[2] or model})
    return found


def slurm(source: Source) -> dict[str, str]:
    """Slurm's names of the job."""
    info = source.environment.get("slurm_info")
    return {str(key): str(value) for key, value in info.items()} if isinstance(info, dict) else {}


def provenance(source: Source, attempts: Sequence[Attempt], fingerprint: str, claimed: float | None) -> dict[str, Any]:
    """Versions, host and commit as the first system wrote them; `imported` names what the record was made from."""
    said = source.environment
    software = {key: value for key, value in (said.get("software") or {}).items() if value is not None}
    rows = [a.row for a in attempts if a.row is not None]
    facts = rows[-1].facts if rows else {}
    return {
        "fingerprint": fingerprint,
        "git_commit": nested(said, "git_info.commit_hash"),
        "git_dirty": nested(said, "git_info.is_dirty"),
        "host": host_of(source, attempts[-1]),
        "cpu": nested(said, "cpu.brand") or facts.get("cpu_model"),
        "cpu_count": nested(said, "cpu.logical_cores"),
        "platform": nested(said, "software.os_version") or facts.get("os"),
        "python": software.get("python_version") or facts.get("python_version"),
        "packages": {name: software[key] for key, name in PACKAGES.items() if key in software}
        | ({"codecarbon": facts["codecarbon_version"]} if "codecarbon_version" in facts else {}),
        "imported": {
            "system": "first",
            "run": source.run.resolve().name,
            "stage_id": source.stage_id,
            "files": sorted({str(a.file.path.name) for a in attempts if a.file is not None}),
            "codecarbon_rows": [row.run_id for row in rows],
            "power_log": any(a.log is not None for a in attempts),
            "tokens_claimed": claimed,
        },
    }
