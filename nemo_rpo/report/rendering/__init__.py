"""A report as data, and as HTML, Markdown and figures."""
