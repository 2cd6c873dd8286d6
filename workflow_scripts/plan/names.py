"""From the names of the settings to keys that are safe as paths, to sources of models, and to files on disk."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

from workflow_scripts.artefact import files_under
from workflow_scripts.settings import Settings, SettingsError
from workflow_scripts.settings.models import FolderModel, HubModel, ModelSource, PrunedModel, RandomModel

TEMPLATES = Path(__file__).parents[1] / "distill" / "chat_templates"


def named_model(name: str, settings: Settings) -> tuple[str, ModelSource]:
    """Key (safe as a path and in a shell) and source of a model: of the registry, a folder, or a hub id.

    Raises SettingsError when it is none of them.
    """
    if name in settings.models:
        return name, settings.models[name]
    if name.startswith((".", "/", "~")) or Path(name).is_dir():
        return f"{_safe(Path(name).name)}-{digest(name)}", FolderModel(source="folder", path=name)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return _safe(name), HubModel(source="hub", repo_id=name, revision="main")
    raise SettingsError(
        f"model {name!r} is neither in `models` ({', '.join(sorted(settings.models))}), nor an existing folder, "
        "nor a hub id (owner/name)"
    )


def files_of(source: ModelSource) -> list[str]:
    """Files on disk that a model is made from: its folder, or the folder of its tokenizer without weights."""
    if isinstance(source, FolderModel):
        return files_at(source.path)
    if isinstance(source, RandomModel):
        return [path for path in files_at(source.tokenizer) if not path.endswith((".safetensors", ".bin"))]
    return []


def files_at(named: str) -> list[str]:
    """Files at a path that the configuration names; a missing one is left to the stage, which says so."""
    path = Path(named).expanduser()
    found = [path] if path.is_file() else files_under(path) if path.is_dir() else []
    return [f"./{p}" if str(p).startswith("-") else str(p) for p in found]  # an option's dash is none of a path's


def one_tokenizer(settings: Settings) -> None:
    """Raise SettingsError where folders on disk tell that a student has not the teacher's tokenizer; others tell later."""
    if settings.model.student_chat_template is not None:
        return
    teacher, student = settings.model.teacher, settings.model.student
    files = [_tokenizer_file(name, settings) for name in (teacher, student)]
    if files[0] is None or files[1] is None or files[0].read_bytes() == files[1].read_bytes():
        return
    models = [json.loads(file.read_text(encoding="utf-8")).get("model", {}) for file in files if file is not None]
    if models[0].get("vocab") != models[1].get("vocab"):
        raise SettingsError(
            f"model.student = {student!r} has another tokenizer than model.teacher = {teacher!r}: choose models of one family, "
            "or set model.student_chat_template (sft, dpo, baseline) to give the student its own"
        )


def _tokenizer_file(name: str, settings: Settings) -> Path | None:
    """tokenizer.json of a model that is a folder on disk, or is pruned from one."""
    _, source = named_model(name, settings)
    if isinstance(source, PrunedModel):
        return _tokenizer_file(source.of, settings) if source.of in settings.models else None
    file = Path(source.path).expanduser() / "tokenizer.json" if isinstance(source, FolderModel) else None
    return file if file is not None and file.is_file() else None


def task_files(settings: Settings) -> list[str]:
    """Evaluation task files of the user's own, and the data beside them; no byte code, which the evaluation itself writes."""
    folder = settings.evaluation.lm_eval_include_path
    return [file for file in files_at(folder) if "__pycache__" not in Path(file).parts] if folder else []


def template_files(choice: str) -> list[str]:
    """A chat template's file, shipped or the user's."""
    if choice == "tokenizer":
        return []
    if choice.endswith(".jinja"):
        return files_at(choice)
    return [os.path.relpath(path) for path in files_at(str(TEMPLATES / f"{choice}.jinja"))]


def digest(*texts: str) -> str:
    """Short hash of texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:10]


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "--", name) or "model"
