"""One set of rules, three kinds of environment: the virtualenv that runs Snakemake, environment modules, conda.

The first is what all other tests use. The second needs Debian's package environment-modules (CI installs it).
"""

from __future__ import annotations

import re

import yaml

from tests.conftest import REPOSITORY, WITH_MODULES, Workflow, needs_modules

SUMMARY = "results/demo_kd/experiment_summary.json"


@needs_modules
def test_a_rule_runs_with_the_modules_of_the_site(finished: Workflow, modules: dict[str, str]) -> None:
    assert "Nothing to be done" in finished.snakemake("-n", *WITH_MODULES, **modules).stdout, "results stay as they are"
    (finished.folder / SUMMARY).unlink()
    finished.snakemake("--cores", "1", SUMMARY, *WITH_MODULES, **modules)
    meter, stage = (finished.folder / "seen").read_text().splitlines()
    assert meter.startswith("python-for-tests/1.0 -m workflow_scripts.energy.meter")
    assert stage.startswith("python-for-tests/1.0 -m workflow_scripts.accounting.summary")
    assert finished.json("results/demo_kd/stages/experiment_summary.json")["status"] == "complete"


@needs_modules
def test_a_module_that_is_not_there_stops_before_the_first_job(finished: Workflow, modules: dict[str, str]) -> None:
    """Snakemake itself would say so in a log and run the job without it."""
    (finished.folder / SUMMARY).unlink()
    (finished.folder / "envs" / "modules.txt").write_text("python-for-tests\narrow/18.1.0\n")
    result = finished.snakemake("--cores", "1", SUMMARY, *WITH_MODULES, check=False, **modules)
    assert result.returncode == 1 and not (finished.folder / SUMMARY).exists()
    assert re.search(
        r"envs/modules.txt: cannot load .*arrow/18.1.0.*Unable to locate a modulefile for 'arrow/18.1.0'", result.stderr
    )


def test_without_a_module_command_modules_are_refused(finished: Workflow) -> None:
    (finished.folder / SUMMARY).unlink()
    result = finished.snakemake("--cores", "1", SUMMARY, *WITH_MODULES, check=False, BASH_ENV="")
    assert result.returncode == 1 and not (finished.folder / SUMMARY).exists()
    assert "a non-interactive bash here has no `module` command" in result.stderr


def test_conda_installs_the_lock_on_a_python_that_it_is_made_for() -> None:
    """Snakemake copies conda.yaml alone to where it makes the environment: what it installs must be listed in it."""
    environment = yaml.safe_load((REPOSITORY / "envs" / "conda.yaml").read_text())
    assert environment["channels"] == ["conda-forge"] and set(environment) == {"name", "channels", "dependencies"}
    *from_conda, from_pip = environment["dependencies"]
    lock = (REPOSITORY / "envs" / "requirements.txt").read_text()
    assert from_pip == {"pip": [line for line in lock.splitlines() if not line.startswith("#")]}, "run `make envs/conda.yaml`"
    names = dict(dependency.partition("=")[::2] for dependency in from_conda)
    assert set(names) == {"python", "pip"}, "what conda pins itself, the lock would have to agree with"
    versions = re.search(r"Lock for Python ([\d., and]+),", lock)
    assert versions and names["python"] in re.findall(r"3\.\d+", versions[1])


def test_the_lock_has_what_is_asked_for() -> None:
    lines = {file: (REPOSITORY / "envs" / file).read_text().splitlines() for file in ("requirements.in", "requirements.txt")}
    asked, pinned = (dict(line.split("==") for line in found if "==" in line) for found in lines.values())
    assert asked.items() <= pinned.items(), "requirements.in was changed: `make lock`"
