"""What a person opens: the answer page, figures, tables, model card, BoAmps."""
