"""What the rules are made from: each metered rule is one `Metered`, and rules/metered.smk gives all of them the same shape.

    meter options -- stage options

A parameter that makes a job stale is one `key=value` of its slice, or the digest of its code: Snakemake prints what differs.
Parameters whose functions take `input` or `output` are not compared by Snakemake: the command lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from workflow_scripts.pipelines import STAGES, rules
from workflow_scripts.plan.code import code_digest
from workflow_scripts.plan.jobs import Job
from workflow_scripts.plan.plan import Plan
from workflow_scripts.plan.slices import NOTHING, canonical, leaves, line

STAGE_THREADS = 16
Command = Callable[[Any, Any, Any], list[str]]  # wildcards, input, output -> words


@dataclass(frozen=True)
class Metered:
    """One metered rule. `jobs` are its jobs by the value of the wildcard `by`; `folder` takes stages/, codecarbon/, logs/."""

    name: str
    folder: str
    output: Mapping[str, Any]
    stage: str = ""  # where it is not the rule's name
    input: Mapping[str, Any] = field(default_factory=dict)
    jobs: Mapping[str, Job] = field(default_factory=dict)
    by: str = ""
    program: str = ""  # module that runs, where it is not stages.<stage>
    launcher: Callable[[Any], list[str]] = lambda wildcards: ["python"]
    extra: Command = lambda wildcards, input, output: []  # what its command has beside settings, inputs and --out
    of_parts: Callable[[Any, Any], list[str]] = lambda wildcards, input: []  # the meter's options of a stage that is split
    log: str = ""  # where it is not logs/<stage>.log of the folder
    record: Any = ""  # where it is not stages/<stage>.json of the folder
    above_idle: bool = True  # its record sets joules against the idle baseline of the prerun
    priority: int = 0
    resources: Mapping[str, Any] = field(default_factory=dict)
    named: tuple[str, ...] = ()  # inputs that the program takes by name, where there are no jobs to say them
    beside: Callable[[Any], Iterable[str]] = lambda wildcards: ()  # records it writes beside its own, other ones for each job
    constraints: Mapping[str, str] = field(default_factory=dict)
    tracked: bool = True
    code: tuple[str, ...] = ()  # further modules that decide its result

    def __post_init__(self) -> None:
        object.__setattr__(self, "stage", self.stage or self.name)

    def job(self, wildcards: Any) -> Job:
        """The job of these wildcards."""
        return self.jobs[getattr(wildcards, self.by)] if self.by else next(iter(self.jobs.values()), Job({}))

    @property
    def threads(self) -> int:
        """CPUs at most; Snakemake takes as many as there are."""
        return 1 if rules()[self.name] == "accounting" else STAGE_THREADS

    @property
    def settings(self) -> bool:
        """Whether the stage takes `--settings` and its input manifests by name."""
        return bool(self.jobs) and self.stage in SLICED

    def digest(self, job: Job) -> str:
        """Digest of the code that decides a job's result: its program, and the settings' sections that it reads."""
        sections = tuple(sorted({key.partition(".")[0] for key in leaves(job.settings)}))
        return code_digest((f"workflow_scripts.{self.program or f'stages.{self.stage}'}", *self.code), sections)

    def upstream(self, wildcards: Any) -> list[str]:
        """Input function: the manifests that the job reads."""
        return list(self.job(wildcards).inputs.values())

    def files(self, wildcards: Any) -> list[str]:
        """Input function: files of the user's that the job reads."""
        return list(self.job(wildcards).files)

    def inputs(self, prerun: Any) -> dict[str, Any]:
        """The rule's input: what the job reads, what this rule adds, and the prerun's result where its record states it."""
        job = {"upstream": self.upstream, "files": self.files} if self.settings and self.tracked else {}
        return {**job, **self.input, **({"prerun": prerun} if self.above_idle else {})}

    def outputs(self) -> dict[str, Any]:
        """The rule's output: what it makes, and the stage record."""
        return {**self.output, "record": self.record or f"{self.folder}/stages/{self.stage}.json"}

    @property
    def logged(self) -> str:
        """The rule's log."""
        return self.log or f"{self.folder}/logs/{self.stage}.log"

    def params(self, plan: Plan) -> dict[str, Any]:
        """The rule's parameters: both command lines, and what is compared."""
        compared: dict[str, Any] = {}
        if self.tracked:
            by_key = {value: leaves(job.deciding) for value, job in self.jobs.items()}
            for number, key in enumerate(sorted({key for found in by_key.values() for key in found})):
                compared[f"key{number}"] = self._compared(key, by_key)
            compared |= {"code": lambda wildcards: f"code={self.digest(self.job(wildcards))}", "nothing": NOTHING}
        return {"meter": self._meter(plan), "command": self._command(), **compared}

    def turn(self, plan: Plan) -> Callable[[Any], int]:
        """The rule's priority, by its wildcards: the order of the runs, after what they share."""
        return lambda wildcards: self.priority + plan.priority(getattr(wildcards, "experiment", None))

    def _compared(self, key: str, by_key: Mapping[str, Mapping[str, Any]]) -> Callable[[Any], str]:
        def value(wildcards: Any) -> str:
            found = by_key[getattr(wildcards, self.by)] if self.by else next(iter(by_key.values()))
            return line(key, found[key]) if key in found else NOTHING

        return value

    def _meter(self, plan: Plan) -> Command:
        def words(wildcards: Any, input: Any, output: Any) -> list[str]:
            name, job = getattr(wildcards, "experiment", None), self.job(wildcards)
            prerun = getattr(input, "prerun", None)
            named = {**job.inputs, **{key: str(input[key]) for key in self.named}}
            split = [*getattr(input, "parts", []), *getattr(input, "records", [])]  # the meter knows them by --parts
            left_out = {str(prerun), *named.values(), *split}
            files = [str(path) for path in input if str(path) not in left_out]
            return [
                *("python", "-m", "workflow_scripts.energy.meter"),
                *(f"--stage={self.stage}", f"--role={STAGES[self.stage].role}"),
                *([f"--experiment={name}", f"--pipeline={plan.pipeline(name)}"] if name else []),
                *(f"--options={plan.energy}", f"--state={plan.output.root}/state"),
                f"--codecarbon={self.folder.format(**wildcards)}/codecarbon",
                *([f"--idle={prerun}", f"--prerun-settings={plan.prerun.identity}"] if prerun else []),
                *(f"--settings={job.identity}", f"--code={self.digest(job)}"),
                *(["--input", *(f"{key}={path}" for key, path in named.items())] if named else []),
                *(["--file", *files] if files else []),
                *self.of_parts(wildcards, input),
                f"--output={output[0]}",
                f"--record={output.record}",
            ]

        return words

    def _command(self) -> Command:
        def words(wildcards: Any, input: Any, output: Any) -> list[str]:
            job = self.job(wildcards)
            inputs = [word for key, path in job.inputs.items() for word in (f"--{key}", path)]
            named = [word for key in self.named for word in (f"--{key}", str(input[key]))]
            return [
                *self.launcher(wildcards),
                *("-m", f"workflow_scripts.{self.program or f'stages.{self.stage}'}"),
                *(["--settings", canonical(job.settings), *inputs] if self.settings else []),
                *named,
                *self.extra(wildcards, input, output),
                *("--out", str(output[0])),
            ]

        return words


SLICED = [name for name, stage in STAGES.items() if stage.reads and name != "comparison"]
