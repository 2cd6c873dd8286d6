"""Settings that need a package which the lock does not install."""

from __future__ import annotations

import importlib.util

_OPTIMIZERS = {"adamw_8bit": "bitsandbytes"}


def missing_optimizer(name: str) -> str | None:
    """Why `training.optimizer` = `name` cannot be used in this environment, with the remedy; None when it can."""
    package = _OPTIMIZERS.get(name)
    if package is None or importlib.util.find_spec(package) is not None:
        return None
    return (
        f"training.optimizer = {name!r} needs the package {package}, which is not installed here: install it "
        f"(pip install {package}) or choose adamw or adafactor"
    )


def missing_backend(key: str, name: str) -> str | None:
    """Why `key` = `name`, a generation backend, cannot be used in this environment, with the remedy; None when it can."""
    if name != "vllm" or importlib.util.find_spec("vllm") is not None:
        return None
    return (
        f"{key} = vllm, but the package vllm is not installed in this environment: install it there "
        "(`pip install vllm`, it brings a torch of its own) or set the backend to transformers"
    )
