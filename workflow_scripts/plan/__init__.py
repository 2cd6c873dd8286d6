"""From settings to jobs: names, slices, files, code, and what Snakemake would run."""
