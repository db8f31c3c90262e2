"""Fits to the margins and votes of all pairs at once: reliabilities, their population, the scale, their errors."""
