"""Snakemake that asks Slurm for job states every two seconds, as a program.

The slurm plugin waits ten seconds longer after every look at which no job has ended, up to three minutes: right for a
cluster, most of the time of a test.
"""

from __future__ import annotations

import sys

from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

SECONDS = 2
RemoteExecutor.next_seconds_between_status_checks = property(lambda self: SECONDS, lambda self, value: None)

if __name__ == "__main__":
    sys.exit(main())
