"""What a run has learnt, for people: read from its record, laid out once, rendered as HTML and as Markdown."""
