"""What a reader opens: figures, tables, the answer page, captions of the report."""
