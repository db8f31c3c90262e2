"""Adapters for other trainers: thin, lazily imported, with no loss and no EM of their own."""
