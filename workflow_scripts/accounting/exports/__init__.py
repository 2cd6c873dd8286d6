"""Formats of others: the model card and BoAmps reports."""
