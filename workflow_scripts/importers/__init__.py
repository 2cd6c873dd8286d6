"""Run folders of other systems, read into records."""
