"""The one class of what a user can remedy."""

from __future__ import annotations


class UserError(Exception):
    """What is wrong, where, and what to do: printed as one `error:` line, without a traceback, and ends with `exit_code`."""

    exit_code = 1
