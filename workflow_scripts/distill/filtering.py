"""Which generated answers a student may learn from."""

from __future__ import annotations

import re

from workflow_scripts.settings.schema import Filtering


def rejection(text: str, length: int, truncated: bool, options: Filtering, seen: set[str]) -> str | None:
    """Why an answer is dropped (empty, truncated, too_short, too_long, duplicate, refusal), or None to keep it.

    `length` is in tokens. `seen` collects the kept texts; an exact repetition is a duplicate.
    """
    if not text.strip():
        return "empty"
    if not options.enabled:
        return None
    if truncated and not options.keep_truncated:
        return "truncated"
    if length < options.min_length:
        return "too_short"
    if length > options.max_length:
        return "too_long"
    if options.refusal_pattern and re.search(options.refusal_pattern, text, re.IGNORECASE):
        return "refusal"
    if text in seen:
        return "duplicate"
    seen.add(text)
    return None
