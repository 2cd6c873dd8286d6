"""What leans on Snakemake's internals (9.27), and nothing else does: look here first when another version is taken.

- `read_plan`: the configuration as Snakemake has merged it.
- `one_meter`: a resource limit that no option of the user takes away.
- `cpus_of_the_jobs`: what a cluster is asked for does not depend on this shell.
- `compare_with_records`: the check of parameters asks the records on disk, too.
- `renew_the_prerun`: a prerun of other settings, or with an old idle baseline, is made again before the next job that needs it.
- `remember`, `stale_jobs`: the plan of a dry run, read after it.
- `last_request`, `planned_jobs`: jobs of the DAG and what they ask for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from snakemake.exceptions import WorkflowError
from snakemake.persistence import ParamsChange, PersistenceBase
from snakemake.utils import available_cpu_count

from workflow_scripts.artefact import sha256
from workflow_scripts.energy.host import IDLE_DAYS, days_old
from workflow_scripts.plan.jobs import Job
from workflow_scripts.plan.plan import Plan
from workflow_scripts.plan.slices import NOTHING, leaves, line
from workflow_scripts.settings import SettingsError, load_experiments
from workflow_scripts.settings.load import read_yaml

NO_LIMIT = 4096  # cores, as profiles/slurm has it


def read_plan(workflow: Any, config: Mapping[str, Any]) -> Plan:
    """The plan of all experiments, the command line on top of their files. Raises WorkflowError with one line per fault."""
    folder = Path(workflow.basedir, "config")
    try:
        for file in dict.fromkeys([*workflow.configfiles, *workflow.config_settings.configfiles]):
            read_yaml(Path(file))  # Snakemake has read it, and has seen no key that stands twice
        return Plan(load_experiments(folder, config, workflow.config_settings.overwrite_config))
    except SettingsError as error:
        raise WorkflowError(str(error)) from None


def adapt(workflow: Any) -> None:
    """Snakemake as these rules need it."""
    one_meter(workflow)
    compare_with_records()
    cpus_of_the_jobs()
    renew_the_prerun()


def one_meter(workflow: Any) -> None:
    """Two metered stages never share this machine, whatever `--resources` or `--workflow-profile` say.

    Host-level counters would count both twice. Jobs of a cluster ask for no meter.
    """
    workflow.register_resource("meter", 1)


def cpus_of_the_jobs() -> None:
    """Jobs of a cluster ask for the CPUs of their rules, not for those of this shell.

    `cores: all` (profiles/default) is how many CPUs this shell may use, and Snakemake cuts the threads of every job down to
    that, wherever the job runs. A number that the user gives stands.
    """
    from snakemake.workflow import Workflow  # which cannot be the first module of Snakemake to be imported

    prepare = Workflow._prepare_dag
    if hasattr(Workflow, "prepare_of_snakemake"):
        return

    def _prepare_dag(self: Any, *arguments: Any, **options: Any) -> None:
        if self.non_local_exec and self.resource_settings.cores == available_cpu_count():
            self.resource_settings.cores = NO_LIMIT
            self.global_resources["_cores"] = NO_LIMIT
        prepare(self, *arguments, **options)

    Workflow.prepare_of_snakemake = prepare
    Workflow._prepare_dag = _prepare_dag


def compare_with_records() -> None:
    """Let Snakemake compare a job's parameters with the record that lies on disk, where its own notes miss or lie.

    Its notes are in `.snakemake` of one working directory. Results that were moved, copied, shared or made by another checkout
    have none, and a file that was replaced by an older one is no news to it. The record says what it was made from: settings,
    code, and the content of all inputs. Records that a job writes beside its own, other ones for each job, can be
    declared by no rule: a job is stale where one is gone.
    """
    if hasattr(PersistenceBase, "params_of_snakemake"):
        return
    noted, compared = PersistenceBase.has_metadata, PersistenceBase.params_changed
    sums = PersistenceBase.input_checksums

    def has_metadata(self: Any, job: Any) -> bool:
        return bool(noted(self, job)) or _record(job) is not None

    def params_changed(self: Any, job: Any, file: Any = None) -> Any:
        found = compared(self, job, file)
        record = _record(job)
        if record is None:
            return found
        old, new = differences(record, *_planned(job))
        beside = [record.with_name(f"{stage}.json") for stage in _SEEN[-1][1][job.rule.name].beside(job.wildcards)]
        gone = [path for path in beside if not path.is_file()]
        old, new = old | {f"{path}=missing" for path in gone}, new | {f"{path}=there" for path in gone}
        if not (old or new):
            return found
        quoted = [frozenset(map(repr, lines)) for lines in (old, new)]  # as Snakemake notes them
        return found | ParamsChange(only_old=quoted[0], only_new=quoted[1], files=frozenset(job.output))

    def input_checksums(self: Any, job: Any, path: Any) -> set[Any]:
        """For an input that is newer than the output: what the record read, where Snakemake noted nothing.

        Of parts that are gone the record of their merge says what they were made from.
        """
        found = sums(self, job, path) - {None}
        record = next((known for each in (job, *self.dag.depending[job]) if (known := _record(each))), None)
        if found or record is None:
            return found
        try:
            read = json.loads(record.read_text(encoding="utf-8"))["provenance"]["files"]
            return {f"sha256:{read[str(path)]['sha256']}"} if str(path) in read else found
        except (ValueError, KeyError, TypeError, AttributeError):
            return found  # `differences` says that it is damaged

    PersistenceBase.input_checksums = input_checksums
    PersistenceBase.params_of_snakemake = compared
    PersistenceBase.has_metadata = has_metadata
    PersistenceBase.params_changed = params_changed


def renew_the_prerun() -> None:
    """Add a prerun that no longer holds to the jobs that will run, where one of them states it; alone it is not repeated.

    Its link is `ancient`: what is finished stays fresh. Snakemake itself would look at nothing below a stale prerun.
    """
    from snakemake.dag import DAG

    decide = DAG.update_needrun
    if hasattr(DAG, "update_needrun_of_snakemake"):
        return

    async def update_needrun(self: Any, *arguments: Any, **options: Any) -> None:
        await decide(self, *arguments, **options)
        for job in [job for job in self.jobs if job.rule.name == "prerun" and not (self.needrun(job) or self.finished(job))]:
            waiting, planned = [other for other in self.depending[job] if self.needrun(other)], _SEEN[-1][1]["prerun"].job({})
            if waiting and (lines := outdated(Path(job.output.validation), planned)):
                old, new = (frozenset(map(repr, each)) for each in lines)
                self.reason(job).params_changed = ParamsChange(only_old=old, only_new=new, files=frozenset(job.output))
                self._needrun.add(job)
                self._n_until_ready[job] = 0
                for other in waiting:
                    self._n_until_ready[other] += 1
                self._len += 1

    DAG.update_needrun_of_snakemake = decide
    DAG.update_needrun = update_needrun


def outdated(validation: Path, planned: Job) -> tuple[set[str], set[str]] | None:
    """Why a prerun's result holds no longer, as `key=value` before and now; None where it does, or is not there."""
    try:
        made = json.loads(validation.read_text(encoding="utf-8"))
        was, days = {line(*leaf) for leaf in leaves(made["settings"]).items()}, days_old(made["idle"], time.time())
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        return {"result=damaged"}, {"result=whole"}
    now = {line(*leaf) for leaf in leaves(planned.deciding).items()}
    old, new = was - now, now - was
    if days > IDLE_DAYS:
        old, new = old | {f"idle baseline={days:.0f} days old"}, new | {f"idle baseline=at most {IDLE_DAYS:.0f}"}
    return (old, new) if old or new else None


def _planned(job: Any) -> tuple[set[str], list[str]]:
    """What is compared of a planned job: its `key=value` lines and its input files."""
    lines = {value for value in job.non_derived_params if isinstance(value, str) and value != NOTHING}
    prerun = str(getattr(job.input, "prerun", ""))
    return lines, [str(path) for path in job.input if str(path) != prerun]


def _record(job: Any) -> Path | None:
    """The record of a job that is compared: of a metered rule whose parameters are."""
    path = getattr(job.output, "record", None)
    tracked = any(isinstance(value, str) and value.startswith("code=") for value in job.non_derived_params)
    return Path(path) if path is not None and tracked and Path(path).is_file() else None


def differences(record: Path, planned: set[str], inputs: Iterable[str]) -> tuple[set[str], set[str]]:
    """What a record was made from and is not planned, and what is planned instead: `key=value`, `code=digest`, `file=sha256`.

    Planned inputs that are gone are left out: what is deleted is made again when something needs it. Raises WorkflowError for a
    record of an earlier version.
    """
    try:
        made = json.loads(record.read_text(encoding="utf-8"))["provenance"]
        if "settings" in made:
            was = {line(key, value) for key, value in leaves(made["settings"] or {}).items()} | {f"code={made['code']}"}
            recorded = {path: (entry["bytes"], entry["mtime_ns"], entry["sha256"]) for path, entry in made["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {f"{record} is damaged"}, planned
    if "settings" not in made:
        raise WorkflowError(
            f"{record} was made by an earlier version of this program and does not say from which settings: keep these results "
            "by moving their folder away, or set output.root to a new one"
        )
    names = list(inputs)
    now = {name: _content(Path(name), recorded.get(name)) for name in names if Path(name).is_file()}
    before, after = {sha for *_, sha in recorded.values()}, set(now.values())
    old = {f"{name}={sha[:12]}" for name, (*_, sha) in recorded.items() if now.get(name, sha) != sha}
    old |= {f"{name}={sha[:12]}" for name, (*_, sha) in recorded.items() if name not in names and sha not in after}
    new = {
        f"{name}={sha[:12]}"
        for name, sha in now.items()
        if (recorded[name][2] != sha if name in recorded else sha not in before)
    }
    return (was - planned) | old, (planned - was) | new


def _content(path: Path, known: tuple[int, int, str] | None) -> str:
    """SHA-256 of a file; as recorded where neither its size nor its time has changed."""
    state = path.stat()
    if known is not None and known[:2] == (state.st_size, state.st_mtime_ns):
        return known[2]
    return sha256(path)


_SEEN: list[tuple[Any, dict[str, Any]]] = []


def remember(workflow: Any, metered: Iterable[Any]) -> None:
    """Keep the workflow and its metered rules for `stale_jobs`."""
    _SEEN.append((workflow, {rule.name: rule for rule in metered}))


def stale_jobs() -> list[tuple[Any, Any, str]]:
    """Metered rule, job and reason of everything that the workflow that was read last would run, inputs first."""
    workflow, rules = _SEEN[-1]
    order = [job for level in workflow.dag.toposorted() for job in level]
    jobs = [job for job in order if job.rule.name in rules and workflow.dag.needrun(job)]
    return [(rules[job.rule.name], job, _reason(workflow.dag, job)) for job in jobs]


def _reason(dag: Any, job: Any) -> str:
    """Why a job is stale; a dry run has declared it finished since."""
    return str(dag.reason(job)).removeprefix("Finished (was: ").removesuffix(")").strip()


def planned_jobs(workflow: Any) -> list[Any]:
    """Jobs that will run."""
    return list(workflow.dag.needrun_jobs())


def last_request(job: Any) -> dict[str, Any]:
    """Resources of a job's last attempt, which asks for the most."""
    first, job.attempt = job.attempt, job.restart_times + 1
    resources = dict(job.resources.items())
    job.attempt = first
    return resources
