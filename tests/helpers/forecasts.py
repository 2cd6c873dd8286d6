"""Manifests, past stages and planned jobs of a forecast, in a working directory of a test."""

from __future__ import annotations

import json
from pathlib import Path

from tests.unit.energy.test_record import figure
from workflow_scripts.accounting.prediction import ForecastRow
from workflow_scripts.energy.ledger import LedgerWriter, read_attempts
from workflow_scripts.energy.record import build_record
from workflow_scripts.energy.state import file_identity
from workflow_scripts.estimate import forecast as module
from workflow_scripts.estimate.artefacts import Artefacts
from workflow_scripts.estimate.history import Hardware, Past
from workflow_scripts.estimate.work import Task
from workflow_scripts.plan.dry_run import PlannedJob
from workflow_scripts.settings.schema import Energy

CPU = "Some CPU"
HERE = Hardware(CPU, 4, ())


def manifest(where: str, facts: dict) -> None:
    path = Path(where) / "manifest.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts | {"path": "."}))


def planned(stage: str, settings: dict, record: str | None = None, experiment: str | None = "x", **inputs: str) -> PlannedJob:
    named = {name: f"results/{path}/manifest.json" for name, path in inputs.items() if name not in ("part", "parts")}
    split = {name: value for name, value in inputs.items() if name in ("part", "parts")}
    return PlannedJob(stage, stage, "test", experiment, settings, named, record or f"results/x/stages/{stage}.json", **split)


def training(budget: int, **more) -> dict:
    block = {"token_budget": budget, "batch_size": 2, "max_epochs": None, "dtype": "auto"} | more
    return {"training": block}


def answers(prompts: int, **more) -> dict:
    return {"synthetic_data": {"max_gen_examples": prompts, "generation": {"max_new_tokens": 10, "batch_size": 2}} | more}


STUDENT = {"student": "models/small/model", "corpus": "corpus/c/dataset"}
TEACHER = {"teacher": "models/large/model", "corpus": "corpus/c/dataset"}
EVALUATED = {"model": "models/small/model", **TEACHER}


def state(
    stage: str,
    mark: str,
    settings: dict | None,
    work: dict,
    joules: float | None,
    seconds: float,
    cpu: str = CPU,
    devices: tuple[str, ...] = (),
    **inputs: str,
) -> Path:
    """A finished stage in the state folder, its record made as the meter makes it; without settings one of an older version."""
    at = Path("results/state", stage, mark)
    named = {name: f"results/{path}/manifest.json" for name, path in inputs.items()}
    files = {path: file_identity(Path(path)) for path in named.values() if Path(path).is_file()}
    origin = {"fingerprint": mark, "cpu": cpu, "cpu_count": 4}
    start = {
        **{"stage": stage, "role": "student", "part": None, "parts": None, "experiment": "x", "pipeline": None},
        "energy": Energy(carbon_intensity_g_per_kwh=100.0, pue=1.5).model_dump(),
        **{"scope": "host", "idle": None, "attempt": mark, "time": 100.0 - seconds},
        **{"host": "h", "pid": 1, "slurm": {}, "devices": [{"uuid": str(n), "name": d} for n, d in enumerate(devices)]},
        "provenance": origin | ({"settings": settings, "inputs": named, "files": files} if settings is not None else {}),
    }
    counts = {"work": work, "unit": "loss", "durable": {}, "resumed": None, "metrics": {}}
    figures = {name: figure(joules if name == "cpu" else None) for name in ("gpu", "cpu", "dram")}
    line = {"elapsed_s": seconds, "joules": figures, "work": counts, "saved_joules": None}
    ledger = LedgerWriter(at / "attempts" / "1.jsonl", start)
    ledger.append({"event": "end", **line, "outcome": "completed", "exit_code": 0, "signal": None})
    ledger.close()
    record = build_record(read_attempts(at / "attempts", stage), {})
    (at / "record.json").write_text(record.model_dump_json(by_alias=True))
    return at / "record.json"


def price(job: PlannedJob) -> ForecastRow:
    return module.row_of([job], module.Estimator([job], Path()), 0.0)


def task(stage: str, settings: dict, past: list[Past] | None = None, **inputs: str) -> Task:
    job = planned(stage, settings, **inputs)
    return Task(stage, job.settings, job.inputs, Artefacts([], Path()), past or [])
