"""Which generated answers a student may learn from."""

from __future__ import annotations

import re

from workflow_scripts.distill.generation import Answer
from workflow_scripts.settings.schema import Filtering


def rejection(answer: Answer, text: str, options: Filtering, seen: set[str]) -> str | None:
    """Why an answer is dropped (empty, truncated, too_short, too_long, duplicate, refusal), or None to keep it.

    `seen` collects the kept texts; an exact repetition is a duplicate.
    """
    if not text.strip():
        return "empty"
    if not options.enabled:
        return None
    if answer.truncated and not options.keep_truncated:
        return "truncated"
    if len(answer.token_ids) < options.min_length:
        return "too_short"
    if len(answer.token_ids) > options.max_length:
        return "too_long"
    if options.refusal_pattern and re.search(options.refusal_pattern, text, re.IGNORECASE):
        return "refusal"
    if text in seen:
        return "duplicate"
    seen.add(text)
    return None
