"""What every stage shares: its command line, clear errors, and publishing that survives a lost driver."""

from __future__ import annotations

import argparse
import gc
import hashlib
import inspect
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from workflow_scripts import artefact
from workflow_scripts.errors import UserError
from workflow_scripts.plan import slices
from workflow_scripts.plan.code import code_digest
from workflow_scripts.progress import STATE_VARIABLE, UNITS_VARIABLE, state_dir
from workflow_scripts.settings import Settings

PUBLISHED = "published.json"


@dataclass(frozen=True)
class Arguments:
    """What a stage is called with: the settings that it reads (no others exist here), its input manifests by name, the manifest
    that it writes, and manifests of parts to merge.
    """

    settings: Settings
    inputs: dict[str, Path]
    out: Path
    extra: dict[str, str]
    parts: list[Path] = field(default_factory=list)
    content: slices.Content = field(default_factory=dict)  # the settings as nested values


def run_stage(
    stage: Callable[[Arguments], None],
    inputs: Sequence[str],
    extra: Sequence[str] = (),
    parts: bool = False,
) -> None:
    """Parse `--settings JSON --<input> manifest … [--parts manifest …] --out manifest` and run the stage.

    A fault that the user can remedy is printed as one `error:` line and exits 1; anything else keeps its traceback.
    """
    parser = argparse.ArgumentParser(prog=stage.__module__, allow_abbrev=False)
    parser.add_argument("--settings", required=True, help="the stage's slice of the configuration, canonical JSON")
    for name in inputs:
        optional = name.endswith("?")
        parser.add_argument(f"--{name.rstrip('?')}", required=not optional, help="manifest of an input")
    for name in extra:
        parser.add_argument(f"--{name}", default="", help="see the stage's docstring")
    parser.add_argument(
        "--parts", nargs="*", default=[], help="manifests of the parts to merge" if parts else argparse.SUPPRESS
    )
    parser.add_argument("--out", required=True, help="manifest (or JSON) that the stage writes")
    options = vars(parser.parse_args())
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    try:
        _state_by_hand(stage, options, inputs)
        stage(
            Arguments(
                settings=slices.read(options["settings"]),
                inputs={n.rstrip("?"): Path(v) for n in inputs if (v := options[n.rstrip("?")])},
                out=Path(options["out"]),
                extra={name: options[name] for name in extra},
                parts=[Path(path) for path in options["parts"]],
                content=json.loads(options["settings"]),
            )
        )
    except ValidationError as error:
        sys.exit(f"error: --settings: {error}")
    except OSError as error:
        if error.errno is None:
            raise
        where = error.filename or f"while writing to {Path(options['out']).parent} or to {state_dir()}"
        sys.exit(f"error: {error.strerror}: {where}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        words = f"({type(error).__name__}: {error})"  # a library's own
        for folder in (Path(options["out"]).parent, state_dir()):
            if reason := artefact.refusal(folder):
                sys.exit(f"error: {reason}: {folder} {words}")
        if reason := artefact.refusal_in(words):
            sys.exit(f"error: {reason}: while writing to {Path(options['out']).parent} or to {state_dir()} {words}")
        raise
    gc.freeze()  # the process ends: to search what is left for rubbish took it a second


def _state_by_hand(stage: Callable[[Arguments], None], options: Mapping[str, Any], inputs: Sequence[str]) -> None:
    """Without a meter: one state folder for all calls with these settings, inputs and code; a merge has that of its parts."""
    if STATE_VARIABLE in os.environ:
        return
    code = code_digest((f"workflow_scripts.stages.{Path(inspect.getfile(stage)).stem}",))
    files = [(name, artefact.sha256(Path(path))) for name in inputs if (path := options[name.rstrip("?")])]
    mark = hashlib.sha256(json.dumps([options["settings"], code, files]).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"stage-state-{os.getuid()}" / f"{Path(inspect.getfile(stage)).stem}-{mark}"
    os.environ[STATE_VARIABLE] = str(folder)
    for part in map(Path, options["parts"][:1]):
        os.environ[UNITS_VARIABLE] = str((part.parent / artefact.read_json(part)["folder"]).resolve())
    print(f"without the energy meter; state folder {folder}", flush=True)


def build_dir(out: Path, bulk: Path | None = None, kind: str = "") -> Path:
    """A fresh folder to build an artefact in, beside where it will be published.

    With `bulk`, a folder that the user named: raises ArtefactError when it holds something that is not ours.
    """
    destination = bulk or out.parent
    if bulk is not None:
        artefact.check_destination(bulk, kind)
    build = destination.parent / f".{destination.name}.build"
    if build.exists():
        shutil.rmtree(build)
    build.mkdir(parents=True)
    return build


def publish(build: Path, out: Path, kind: str, facts: dict[str, Any], bulk: Path | None = None) -> None:
    """Publish, and remember the manifest in the state folder."""
    artefact.publish(build, out, kind, facts, bulk)
    artefact.write_json(state_dir() / PUBLISHED, artefact.read_json(out))


def restore(out: Path) -> dict[str, Any] | None:
    """Put back the manifest of an artefact that this very stage has published before and that is still whole.

    Snakemake removes the manifest when a driver died after the stage had finished; the work need not be repeated.
    Returns the facts, or None when there is nothing to restore.
    """
    remembered = state_dir() / PUBLISHED
    if not remembered.is_file():
        return None
    facts: dict[str, Any] = artefact.read_json(remembered)
    folder = (out.parent / facts["path"]).resolve()
    if not folder.is_dir() or artefact.inventory(folder) != facts.get("files"):
        return None
    artefact.write_json(out, facts)
    print(f"restored {out}: its files are whole. To make it anew, delete {folder} and {remembered.parent}", flush=True)
    return facts
