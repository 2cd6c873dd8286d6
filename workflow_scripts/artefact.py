"""Artefacts: a folder of files and a manifest that is written last, so that a manifest means a whole artefact.

A manifest holds facts about content only (no time stamps): the same content gives the same bytes, and what depends on it
is not stale when a stage is repeated with the same result.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from workflow_scripts.errors import UserError

SCHEMA = "artefact/1"
MANIFEST = "manifest.json"
CARD = "README.md"  # a model card is written once the energy is known, after the artefact: it is no content of it
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
RANDOM_WEIGHTS = "random weights: quality means nothing"
LOGIT_FORMATS = {"top_k": "top_k/2", "random": "random/1"}  # of a logit cache, by `distillation.sampling`


class ArtefactError(UserError):
    """An artefact that is missing, broken or not what its manifest says."""


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader sees the old file or the whole new one: temporary name, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as handle:
            json.dump(content, handle, indent=1, allow_nan=False)
            handle.write("\n")
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def flush(folder: Path) -> None:
    """Wait until every file under `folder` is on disk, before something states that it is whole: a node may lose its power."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())


def read_json(path: Path) -> Any:
    """Read JSON. Raises ArtefactError naming the file when it is missing or cut."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtefactError(f"{path} does not exist") from None
    except json.JSONDecodeError as error:
        raise ArtefactError(f"{path} is not whole JSON ({error}): delete it and run again") from None


def refusal(folder: Path) -> str | None:
    """Why nothing can be written to a folder (or to its nearest parent that exists): no space left, or read-only."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if os.statvfs(existing).f_flag & os.ST_RDONLY:
        return os.strerror(errno.EROFS)
    return os.strerror(errno.ENOSPC) if shutil.disk_usage(existing).free < 1 << 20 else None


def refusal_in(words: str) -> str | None:
    """The system's reason in the words of a library that could not write; once it has cleaned up, there may be space again."""
    return next((reason for code in REFUSALS if (reason := os.strerror(code)) in words), None)


def files_under(folder: Path) -> list[Path]:
    """All files of a user's folder, in order; links to other folders are followed, each folder once."""
    found, seen = [], {folder.resolve()}
    for root, folders, names in os.walk(folder, followlinks=True):
        new = {name: Path(root, name).resolve() for name in folders}
        folders[:] = [name for name, real in new.items() if real not in seen]
        seen |= set(new.values())
        found += [path for name in names if (path := Path(root, name)).is_file()]
    return sorted(found)


def inventory(folder: Path) -> dict[str, dict[str, Any]]:
    """Size [bytes] and SHA-256 of every file under `folder` but its card, by relative path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST and p != folder / CARD)
    return {str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}


def check_destination(folder: Path, kind: str) -> None:
    """Raise ArtefactError when `folder` holds something that is not an artefact of this kind: it would be replaced."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    marker = folder / MANIFEST
    if not folder.is_dir() or not marker.is_file() or read_json(marker).get("kind") != kind:
        raise ArtefactError(
            f"{folder} exists and is no {kind} made here, so it is not replaced: move it away, name another folder, or, for a "
            "synthetic data set, set use_existing: true"
        )


def publish(build: Path, manifest: Path, kind: str, facts: dict[str, Any], bulk: Path | None = None) -> None:
    """Make the folder `build` the artefact of `manifest`, in one rename.

    With `bulk` the files go to that folder, with a manifest of their own, and `manifest` points there. An older artefact of
    the same kind is removed after the new one stands; anything else at the destination raises ArtefactError. `build` must be
    beside its destination.
    """
    facts = {"schema": SCHEMA, "kind": kind, **facts, "files": inventory(build)}
    destination = bulk or manifest.parent
    if bulk is not None:
        check_destination(bulk, kind)
    flush(build)
    write_json(build / MANIFEST, facts | {"path": ".", **({"published_by": str(manifest.absolute())} if bulk else {})})
    destination.parent.mkdir(parents=True, exist_ok=True)
    old = destination.with_name(f".{destination.name}.old.{os.getpid()}")
    if destination.exists():
        destination.rename(old)
    try:
        build.rename(destination)
    except OSError:
        if old.exists():
            old.rename(destination)
        raise
    if bulk is not None:
        write_json(manifest, facts | {"path": str(bulk.absolute())})
    if old.exists():
        shutil.rmtree(old)


def point_to(folder: Path, manifest: Path, kind: str, facts: dict[str, Any]) -> None:
    """Write a manifest for content that stays where it is and is not ours (a hub snapshot, a user's folder)."""
    write_json(manifest, {"schema": SCHEMA, "kind": kind, **facts, "path": str(folder.absolute())})


def content_files(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The files of a manifest that are content: older manifests list the card, too."""
    return {name: entry for name, entry in facts.get("files", {}).items() if name != CARD}


def inherited(manifests: Iterable[Path]) -> dict[str, list[str]]:
    """What input manifests warn of holds for what is made from them: facts for the manifest, none without a warning."""
    found = [text for path in manifests if path.name == MANIFEST for text in read_json(path).get("warnings", [])]
    return {"warnings": list(dict.fromkeys(found))} if found else {}


def open_artefact(manifest: Path, kind: str) -> tuple[Path, dict[str, Any]]:
    """Folder and facts of an artefact. Raises ArtefactError when a file is missing or of another size."""
    facts = read_json(manifest)
    if facts.get("schema") != SCHEMA or facts.get("kind") != kind:
        raise ArtefactError(
            f"{manifest}: expected {SCHEMA} of kind {kind!r}, found {facts.get('schema')} of kind {facts.get('kind')!r}"
        )
    folder = (manifest.parent / facts["path"]).resolve()
    for name, entry in content_files(facts).items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise ArtefactError(f"{path} is missing or damaged: delete {manifest} and run again")
    return folder, facts
