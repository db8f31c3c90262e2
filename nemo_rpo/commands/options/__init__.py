"""Groups of options that belong together."""
