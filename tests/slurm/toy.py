"""A workflow of jobs that wait for a file, in seconds on Slurm: what is tested is the driver and the meter, not the stages."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.helpers.meter_bench import Bench
from tests.slurm.processes import ticks
from tests.slurm.site import QUICK, QUICK_PROGRAM
from workflow_scripts.energy.ledger import Attempt, read_attempts

SNAKEFILE = """
import sys
sys.path.insert(0, {repository!r})
from workflow_scripts.cluster import slurm_plugin
slurm_plugin.mend()
slurm_plugin.SUBMIT_AGAIN_S = 2
rule all:
    input: expand("{{name}}.out", name={names!r})
rule work:
    output: "{{name}}.out"
    log: "{{name}}.log"
    threads: 1
    resources:
        slurm_partition="cpu", slurm_account="default", runtime=5, mem_mb=lambda wildcards, attempt: 600 * attempt
    shell: {shell!r}
"""
METERED = """
cd {folder}
exec {python} -m workflow_scripts.energy.meter --stage work --role student --record "$1/record.json" --log "$1.log" \\
  --state "$1/state" --options "$(cat options.json)" -- {python} {child} "$1"
"""


WAIT = "touch {name}.began; until [ -e {name}.go ]; do sleep 0.2; done"


class Toy:
    """A driver with one job per name. A job runs `command`, by default until there is `<name>.go`, and says `<name>.began`."""

    def __init__(self, folder: Path, *names: str, command: str = WAIT) -> None:
        self.folder, self.names = folder, names
        shell = command.replace("{name}", "{wildcards.name}") + "\ntouch {output}"
        text = SNAKEFILE.format(repository=str(REPOSITORY), names=list(names), shell=shell)
        (folder / "Snakefile").write_text(textwrap.dedent(text))

    @classmethod
    def metered(cls, folder: Path, *names: str, child: str) -> Toy:
        """Jobs that run a program under the meter, with their name as its argument; each has a folder of that name."""
        bench = Bench(folder)
        (folder / "options.json").write_text(bench.options)
        (folder / "child.py").write_text(textwrap.dedent(child))
        script = METERED.format(folder=folder, python=sys.executable, child=folder / "child.py")
        (folder / "metered.sh").write_text(script)
        return cls(folder, *names, command="bash metered.sh {name}")

    def attempts(self, name: str) -> list[Attempt]:
        """What the ledgers of a metered job say."""
        folders = (self.folder / name / "state" / "work").glob("*/attempts")
        return [attempt for folder in folders for attempt in read_attempts(folder, "work")]

    def start(self, *options: str, status: str = "sacct") -> subprocess.Popen[bytes]:
        """Start Snakemake; what it says is in `said`."""
        command = [sys.executable, *QUICK_PROGRAM, "--executor", "slurm", "--jobs", "10", *QUICK]
        with (self.folder / "said").open("wb") as output:
            self.driver = subprocess.Popen(
                [*command, "--slurm-status-command", status, *options],
                cwd=self.folder,
                stdout=output,
                stderr=output,
                env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            )
        atexit.register(self.driver.kill)  # of a test that fails
        return self.driver

    @property
    def said(self) -> str:
        """All that the driver has said."""
        return (self.folder / "said").read_text()

    def go(self, name: str) -> None:
        """Let a job end."""
        (self.folder / f"{name}.go").touch()

    def wait_until_said(self, words: str, timeout: float = 300) -> str:
        """Wait until the driver has said the words; return all that it has said."""
        for _ in ticks(timeout):
            if words in self.said:
                return self.said
            assert self.driver.poll() is None, f"the driver has ended:\n{self.said}"
        raise AssertionError(f"not said after {timeout} s: {words}\n{self.said}")

    def end(self, timeout: float = 300) -> int:
        """The driver's exit code; a driver that waits for ever is ended, and fails the test."""
        try:
            return self.driver.wait(timeout)
        except subprocess.TimeoutExpired:
            self.driver.kill()
            raise AssertionError(f"the driver still waits after {timeout} s:\n{self.said}") from None
