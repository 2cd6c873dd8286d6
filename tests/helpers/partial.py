"""Settings of which only the given keys exist, as a stage gets them."""

from __future__ import annotations

import json
from typing import Any

from workflow_scripts.plan import slices
from workflow_scripts.settings import Settings


def partial(**sections: Any) -> Settings:
    """The part of the settings that the nested values give."""
    return slices.read(json.dumps(sections))
