"""Tasks of the lm-evaluation-harness by name: an optional extra, envs/requirements-lm-eval.txt.

Task files (YAML) and what they read may lie in a local folder, so that no hub is needed.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
from importlib import metadata
from pathlib import Path
from typing import Any

from workflow_scripts.errors import UserError
from workflow_scripts.settings.schema import Evaluation

REMEDY = "pip install -r envs/requirements-lm-eval.txt"
_BOOTSTRAPS = 1000  # for metrics whose standard error has no closed form


class HarnessError(UserError):
    """Tasks that cannot be run; the message names the key, its value and the remedy."""


def check(options: Evaluation) -> Any:
    """The harness's task manager, which knows every asked task; None when none is asked for. Raises HarnessError.

    Built-in tasks, some ten thousand files, are looked through only for names that the local folder has not.
    """
    if not options.lm_eval_tasks:
        return None
    if importlib.util.find_spec("lm_eval") is None:
        asked = ", ".join(options.lm_eval_tasks)
        raise HarnessError(
            f"evaluation.lm_eval_tasks = [{asked}], but the package lm-eval is not installed here: {REMEDY}, or ask for no task"
        )
    folder = options.lm_eval_include_path
    if folder is not None and not Path(folder).is_dir():
        raise HarnessError(f"evaluation.lm_eval_include_path = {folder!r} is no folder: name the one with the task files")
    from lm_eval.tasks import TaskManager

    if folder is not None:
        local = TaskManager(include_path=folder, include_defaults=False)
        if all(local.match_tasks([name]) for name in options.lm_eval_tasks):
            return local
    known = TaskManager(include_path=folder)
    for name in options.lm_eval_tasks:
        if not known.match_tasks([name]):
            near = difflib.get_close_matches(name, known.all_tasks, n=1)
            where = f"lm-eval {metadata.version('lm-eval')}" + (f" and {folder}" if folder else "")
            meant = f"did you mean {near[0]!r}?" if near else "name one that is there, or add its file to lm_eval_include_path"
            raise HarnessError(f"evaluation.lm_eval_tasks: {name!r} is no task of {where}: {meant}")
    return known


def run(model: Any, tokenizer: Any, ends: list[int], options: Evaluation, tasks: Any) -> dict[str, Any]:
    """Run the asked tasks on a loaded model; `tasks` comes from `check`, `ends` are the tokens that stop an answer.

    Returns `metrics` by `<task>/<metric>` (with `,<filter>` where the task has several), each with value, stderr (null where
    it is not known), higher_is_better, and the examples, shots and version that values are comparable under.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(eos_token_id=ends)
    found = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=options.lm_eval_batch_size),
        tasks=list(options.lm_eval_tasks),
        task_manager=tasks,
        num_fewshot=options.lm_eval_num_fewshot,
        limit=options.lm_eval_limit,
        apply_chat_template=options.lm_eval_apply_chat_template,
        bootstrap_iters=_BOOTSTRAPS,
        log_samples=False,
    )
    return {
        "lm_eval": metadata.version("lm-eval"),
        "limit": options.lm_eval_limit,
        "chat_template": options.lm_eval_apply_chat_template,
        "metrics": metrics_of(found),
    }


def metrics_of(found: Any) -> dict[str, dict[str, Any]]:
    """The metrics in what the harness returns, groups of tasks among them."""
    metrics = {}
    for task, row in found["results"].items():
        for key, value in row.items():
            metric, comma, strained = key.partition(",")
            number = _number(value)
            if not comma or metric.endswith("_stderr") or number is None:
                continue
            name = f"{task}/{metric}" if strained == "none" else f"{task}/{key}"
            metrics[name] = {
                "value": number,
                "stderr": _number(row.get(f"{metric}_stderr,{strained}")),
                "higher_is_better": found["higher_is_better"].get(task, {}).get(metric),
                "examples": (found["n-samples"].get(task) or {}).get("effective"),
                "shots": found["n-shot"].get(task),
                "version": found["versions"].get(task),
            }
    return metrics


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
