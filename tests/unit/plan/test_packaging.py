"""What a user or a catalog reads beside the code: one version, one license, valid files."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

import yaml

from workflow_scripts import __version__
from workflow_scripts.pipelines import rules
from workflow_scripts.reference import MEMBERS
from workflow_scripts.settings.load import RESERVED_NAMES

REPOSITORY = Path(__file__).parents[3]


def test_one_version_and_one_license() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert project["version"] == str(citation["version"]) == __version__
    assert project["license"] == citation["license"] == "Apache-2.0"
    text = (REPOSITORY / "LICENSE").read_text()
    words = hashlib.sha256(" ".join(text.split()).encode()).hexdigest()
    assert words == "0ffddef9e48f8a09aed5caf2d44f7ba1c1be2d9b8e0a6f693b1635b2d5566645", "the words of the Apache License 2.0"


def test_the_citation_has_what_cff_1_2_requires() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert all(citation[key] for key in ("title", "message", "authors"))
    assert all("name" in author or "family-names" in author for author in citation["authors"])


def test_the_catalog_finds_the_workflow() -> None:
    """The rules of the catalog for its list of all workflows: README with both words, Snakefile, .smk files in rules/."""
    readme = (REPOSITORY / "README.md").read_text().lower()
    assert "snakemake" in readme and "workflow" in readme
    assert (REPOSITORY / "Snakefile").is_file() and not (REPOSITORY / "workflow").exists()
    assert all(path.suffix == ".smk" for path in (REPOSITORY / "rules").iterdir() if path.is_file())
    usage = yaml.safe_load((REPOSITORY / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert usage["report"] is True and usage["software-stack-deployment"]["conda"] is True


def test_every_rule_has_one_family_in_the_slurm_profile() -> None:
    profile = (REPOSITORY / "profiles" / "slurm" / "config.yaml").read_text()
    found = MEMBERS.search(profile)
    assert found
    members = yaml.safe_load(found[0])
    assert {rule: family for family, own in members.items() for rule in own} == rules()
    assert sum(map(len, members.values())) == len(rules()), "a rule has two families"


def test_no_experiment_may_be_named_like_a_rule() -> None:
    assert {"all", "export_policy", "logit_caching", *rules()} <= set(RESERVED_NAMES)
