"""Distillation: corpus, teacher artefacts, losses, trainers, evaluation. Knows nothing of energy or Snakemake."""
