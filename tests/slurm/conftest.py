"""These tests start a Slurm of their own: they need root and Debian's packages, and are skipped elsewhere, but not in CI."""

from __future__ import annotations

import os
import shutil

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("REQUIRE_SLURM"):
        return
    missing = [
        name for name in ("munged", "slurmctld", "slurmd", "slurmdbd", "mariadbd") if shutil.which(name, path=PATH) is None
    ]
    reason = "needs root" if os.geteuid() else f"not installed: {', '.join(missing)}" if missing else None
    for item in items:
        if reason and "tests/slurm/" in item.nodeid:
            item.add_marker(pytest.mark.skip(reason=f"a real Slurm {reason}"))


PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
