"""The jobs that Snakemake would run, as Snakemake itself says: a dry run in a process of its own.

    python -m workflow_scripts.plan.dry_run OUT.jsonl [snakemake arguments …]

Writes one JSON line per metered job that is stale. What is stale is Snakemake's decision alone. Its own arguments (targets,
--configfile, --workflow-profile …) are passed on; `-n` is added.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workflow_scripts.errors import UserError
from workflow_scripts.plan.slices import Content


class DryRunError(UserError):
    """Snakemake could not plan; its own message says why."""


@dataclass(frozen=True)
class PlannedJob:
    """One metered job of the plan: what it reads (nested, with the configuration's names), and why it is stale."""

    rule: str
    stage: str
    reason: str
    experiment: str | None
    settings: Content
    inputs: dict[str, str]  # argument name -> manifest
    record: str  # that it will write
    part: str | None = None  # N-of-M of a part
    parts: int = 0  # that a merge gathers


def planned(arguments: Sequence[str]) -> tuple[list[PlannedJob], Path]:
    """Stale metered jobs of Snakemake's plan for these arguments, and the folder that their paths are relative to.

    Raises DryRunError when Snakemake refuses to plan (it has said why on standard error).
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "jobs.jsonl")
        result = subprocess.run([sys.executable, "-m", "workflow_scripts.plan.dry_run", str(out), *arguments], check=False)
        if result.returncode != 0:
            raise DryRunError("snakemake -n failed, see above")
        where, *lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return [PlannedJob(**line) for line in lines], Path(where)


def short_reason(reason: str) -> str:
    """Snakemake's reason in a few words: what changed from what to what, else its first clause."""
    if found := re.search(r"before: (.*?) now: (.*?) ?(?:;|$)", reason):
        pairs = {side: _values(text) for side, text in zip(("before", "now"), found.groups(), strict=True)}
        keys = list(dict.fromkeys([*pairs["before"], *pairs["now"]]))
        return ", ".join(f"{key}: {pairs['before'].get(key, '-')} -> {pairs['now'].get(key, '-')}" for key in keys)
    clause = reason.partition(";")[0]
    head, colon, rest = clause.partition(":")
    names = [name.strip() for name in rest.split(",")]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{head}:{names[0] and ' ' + names[0]}{more}" if colon else head


def _values(text: str) -> dict[str, str]:
    """`'key=value','key=value'` as a mapping; values may hold commas."""
    lines = re.findall(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"", text)
    return dict((single or double).split("=", 1) for single, double in lines if "=" in (single or double))


def write_plan(out: Path, arguments: Sequence[str]) -> int:
    """Run `snakemake -n` in this process, with its stale jobs written to `out`; returns Snakemake's exit code."""
    from snakemake.cli import args_to_api, parse_args
    from snakemake.exceptions import print_exception

    from workflow_scripts.plan import snakemake_internals

    parser, parsed = parse_args([*arguments, "--dry-run", "--quiet", "host", "progress", "reason", "rules"])
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            done = args_to_api(parsed, parser)
        except Exception as error:  # as Snakemake's own main does
            print_exception(error)
            done = False
    if not done:
        print(said.getvalue(), file=sys.stderr)
        return 1
    lines = [str(Path.cwd()), *(asdict(job_of(*found)) for found in snakemake_internals.stale_jobs())]
    out.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return 0


def job_of(metered: Any, job: Any, reason: str) -> PlannedJob:
    """What is kept of a job of Snakemake's DAG."""
    planned_job = metered.job(job.wildcards)
    return PlannedJob(
        rule=metered.name,
        stage=metered.stage,
        reason=reason,
        experiment=getattr(job.wildcards, "experiment", None),
        settings=planned_job.settings,
        inputs=dict(planned_job.inputs),
        record=str(job.output.record),
        part=getattr(job.wildcards, "part", None),
        parts=len(getattr(job.input, "parts", [])),
    )


if __name__ == "__main__":
    sys.exit(write_plan(Path(sys.argv[1]), sys.argv[2:]))
