"""From stage records to answers: summary, comparison, break-even, figures. Pure functions over records."""
