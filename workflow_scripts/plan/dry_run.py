"""The jobs that Snakemake would run, as Snakemake itself says: a dry run, read through its logger plugin interface.

    python -m workflow_scripts.plan.dry_run OUT.jsonl [snakemake arguments …]

Writes one JSON line per planned job with a shell command: rule, reason, command, and the working directory that its paths
are relative to. What is stale is Snakemake's decision alone. Its own arguments (targets, --configfile, --workflow-profile …)
are passed on; `-n` is added.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
import types
from collections.abc import Sequence
from dataclasses import dataclass
from logging import ERROR, WARNING, LogRecord
from pathlib import Path
from typing import Any

METER = "workflow_scripts.energy.meter"


class DryRunError(RuntimeError):
    """Snakemake could not plan; its own message says why."""


@dataclass(frozen=True)
class PlannedJob:
    """One metered job of the plan: what it is, what it reads, and the record that it will write.

    `settings` are the configuration keys that its rule reads, under their names; `inputs` are manifests by argument name.
    """

    rule: str
    stage: str
    reason: str
    experiment: str | None
    settings: dict[str, Any]
    inputs: dict[str, str]
    record: str
    part: str | None = None  # 1-of-4, for a part
    parts: int = 0  # of a merge


def planned(arguments: Sequence[str]) -> tuple[list[PlannedJob], Path]:
    """Metered jobs of Snakemake's plan for these arguments, and the folder that their paths are relative to.

    Raises DryRunError when Snakemake refuses to plan (it has said why on standard error).
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "jobs.jsonl")
        result = subprocess.run([sys.executable, "-m", "workflow_scripts.plan.dry_run", str(out), *arguments], check=False)
        if result.returncode != 0:
            raise DryRunError("snakemake -n failed, see above")
        lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    jobs = [parse(line["rule"], line["reason"], line["command"]) for line in lines if METER in line["command"]]
    return jobs, Path(lines[0]["folder"]) if lines else Path.cwd()


def parse(rule: str, reason: str, command: str) -> PlannedJob:
    """A planned job from its shell command, `meter options -- stage options`."""
    words = shlex.split(command)
    split = words.index("--")
    meter = options(words[:split])
    return PlannedJob(
        rule=rule,
        stage=meter["stage"][0],
        reason=reason,
        experiment=meter.get("experiment", [None])[0],
        settings=json.loads(meter.get("settings", ["{}"])[0]),
        inputs=dict(named.split("=", 1) for named in meter.get("input", [])),
        record=meter["record"][0],
        part=meter.get("part", [None])[0],
        parts=len(meter.get("parts", [])),
    )


def options(words: Sequence[str]) -> dict[str, list[str]]:
    """Values of `--name value …` and `--name=value`, by name; words before the first option are left out."""
    found: dict[str, list[str]] = {}
    name = None
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found[name] = [value] if equals else []
        elif name is not None:
            found[name].append(word)
    return found


def write_plan(out: Path, arguments: Sequence[str]) -> int:
    """Run `snakemake -n` in this process, with its jobs written to `out`; returns Snakemake's exit code."""
    from snakemake.cli import args_to_api, parse_args
    from snakemake.exceptions import print_exception
    from snakemake_interface_logger_plugins.base import LogHandlerBase
    from snakemake_interface_logger_plugins.common import LogEvent
    from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry

    with out.open("w", encoding="utf-8") as handle:

        class LogHandler(LogHandlerBase):
            """Writes planned jobs to the file, warnings and errors to standard error."""

            writes_to_stream = True
            writes_to_file = False
            has_filter = True
            has_formatter = True
            needs_rulegraph = False

            def emit(self, record: LogRecord) -> None:
                fields = vars(record)
                if fields.get("event") == LogEvent.JOB_INFO and fields.get("shellcmd"):
                    line = {"rule": fields["rule_name"], "reason": fields["reason"], "command": fields["shellcmd"]}
                    handle.write(json.dumps(line | {"folder": str(Path.cwd())}) + "\n")
                elif record.levelno >= ERROR or (record.levelno >= WARNING and record.getMessage()):
                    print(record.getMessage(), file=sys.stderr)

        plugin = types.ModuleType("snakemake_logger_plugin_plan")
        plugin.LogHandler = LogHandler  # type: ignore[attr-defined]
        LoggerPluginRegistry().register_plugin(plugin.__name__, plugin)
        parser, parsed = parse_args([*arguments, "--dry-run", "--logger", "plan"])
        try:
            return 0 if args_to_api(parsed, parser) else 1
        except Exception as error:  # as Snakemake's own main does
            print_exception(error)
            return 1


if __name__ == "__main__":
    sys.exit(write_plan(Path(sys.argv[1]), sys.argv[2:]))
