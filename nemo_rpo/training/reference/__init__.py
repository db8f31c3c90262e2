"""The frozen policies of a run: its reference, live or precomputed, the step-0 law, and how far π₀ is."""
