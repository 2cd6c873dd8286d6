"""check_tasks: whether the asked tasks of the lm-evaluation-harness can be run here; before the first job.

python -m workflow_scripts.stages.runtime.check_tasks --settings JSON

`--settings` is an evaluation's slice. Exit code 1 with one `error:` line where they cannot.
"""

from __future__ import annotations

import argparse
import sys

from workflow_scripts.distill import harness
from workflow_scripts.plan import slices


def main() -> int:
    """Check, and say what is wrong."""
    parser = argparse.ArgumentParser(prog="workflow_scripts.stages.runtime.check_tasks", allow_abbrev=False)
    parser.add_argument("--settings", required=True)
    try:
        harness.check(slices.read(parser.parse_args().settings).evaluation)
    except harness.HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
