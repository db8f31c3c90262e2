"""The frozen reference of a run: live or precomputed, its file, the step-0 law."""
