"""The energy meter: sources, attempt ledger, stage record. Knows nothing of models, torch or Snakemake."""
