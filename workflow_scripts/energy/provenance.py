"""Where a figure comes from: versions, host and code."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_scripts import __version__
from workflow_scripts.energy.host import cpu_brand
from workflow_scripts.energy.state import Identity

if TYPE_CHECKING:
    from workflow_scripts.energy.model import Provenance

_PACKAGES = ("torch", "transformers", "trl", "datasets", "codecarbon", "snakemake", "nvidia-ml-py")


def provenance(fingerprint: str, identity: Identity) -> dict[str, Any]:
    """What a stage read, versions of what computes, the host, and the commit of the workflow; null where it is not known."""
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain", "--", "."], capture_output=True, text=True, check=False)
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "fingerprint": fingerprint,
        **dataclasses.asdict(identity),
        "git_commit": commit.stdout.strip() or None,
        "git_dirty": bool(changed.stdout.strip()) if commit.returncode == 0 else None,
        "host": socket.gethostname(),
        "cpu": cpu_brand(),
        "cpu_count": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": versions,
    }


def bug_report(stage: str, known: Provenance) -> str:
    """One line that tells a maintainer what ran: version, commit, stage, settings, versions of what computes, platform."""
    commit = (known.git_commit or "unknown")[:12] + (", changed" if known.git_dirty else "")
    versions = ", ".join(f"{name} {version}" for name, version in known.packages.items())
    return (
        f"for a bug report: distillation-energy-benchmark {__version__} (commit {commit}), stage {stage}, "
        f"fingerprint {(known.fingerprint or 'unknown')[:12]}, Python {known.python}, {versions}, {known.platform}"
    )
