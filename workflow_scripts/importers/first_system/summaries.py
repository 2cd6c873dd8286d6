"""The summary of an imported experiment, and its files; results that were not imported are never replaced."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

from workflow_scripts.accounting.model import ExperimentSummary, Reuse, SummaryStage
from workflow_scripts.accounting.summary import fingerprint
from workflow_scripts.artefact import ArtefactError, read_json, write_json
from workflow_scripts.importers.first_system.attempts import Attempt
from workflow_scripts.importers.first_system.files import SUMMARY
from workflow_scripts.importers.first_system.naming import Experiment, comparable
from workflow_scripts.importers.first_system.power_log import PowerLog
from workflow_scripts.importers.first_system.values import nested

NO_SETTINGS = ("experiment", "wandb", "output", "benchmark", "hardware", "energy")  # of the first system: change no result


def summarise(experiment: Experiment, stages: dict[str, SummaryStage], sharing: Mapping[str, list[str]]) -> ExperimentSummary:
    """The summary `experiment-summary/1`; `sharing` names the experiments that use a stage.

    Quality is empty: the first system kept none beside the energy.
    """
    marks = {stage: record.provenance.fingerprint for stage, record in stages.items()}
    return ExperimentSummary(
        experiment_id=f"{experiment.name}-imported-{fingerprint(marks)}",
        experiment_name=experiment.name,
        pipeline=experiment.pipeline,
        description=str(nested(experiment.config, "experiment.description") or "imported from the first system"),
        reuse={stage: Reuse(experiments=len(names), names=names) for stage, names in sharing.items() if len(names) > 1},
        comparable=comparable(experiment.config),
        config_fingerprint=fingerprint(experiment.config),
        seedless_fingerprint=_seedless(experiment),
        stages=stages,
    )


def _seedless(experiment: Experiment) -> str | None:
    """Equal for runs that differ in their seed only; None where the configuration was not kept."""
    if not experiment.config:
        return None
    settings = {key: value for key, value in experiment.config.items() if key not in NO_SETTINGS}
    return fingerprint({**settings, "stages": sorted(experiment.stages)})


def refusal(folder: Path) -> str | None:
    """Why the results in a folder must not be replaced, or None."""
    for path in (folder / SUMMARY, *sorted((folder / "stages").glob("*.json"))):
        if not path.is_file():
            continue
        try:
            content = read_json(path)
        except (ArtefactError, UnicodeDecodeError):
            return f"{path} exists and cannot be read: move it away or choose another --out"
        records = content.get("stages", {}).values() if path.name == SUMMARY else [content]
        if not records or not all("imported" in (r.get("provenance") or {}) for r in records):
            return f"{path} exists and was not imported: it is not replaced, choose another --out"
    return None


def write(folder: Path, summary: ExperimentSummary, attempts: Mapping[str, list[Attempt]]) -> None:
    """Write the power traces, the records and, last, the summary. Stages of an earlier import that are gone are removed."""
    for old in (folder / "stages").glob("*.json"):
        if old.stem not in summary.stages:
            old.unlink()
    for stage, record in summary.stages.items():
        for attempt, entry in zip(attempts[stage], record.attempts, strict=True):
            if attempt.log is not None and entry.joules["gpu"] is not None:
                entry.trace = f"{folder.name}/traces/{stage}-{entry.id}.csv.gz"
                _trace(folder.parent / entry.trace, attempt.log, attempt.start)
        write_json(folder / "stages" / f"{stage}.json", record.model_copy(update={"shared_by": None}).content())
    write_json(folder / SUMMARY, summary.content())


def _trace(path: Path, log: PowerLog, start: float) -> None:
    """Cumulative joules at every sample of a power log, as the meter's own traces have them; the same bytes every time."""
    lines = [f"{max(0.0, time - start):.3f},{joules:.3f}" for time, joules in zip(log.times, log.curve(), strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(("\n".join(["elapsed_s,gpu_j", *lines]) + "\n").encode(), mtime=0))
