"""Adapters for other trainers: thin, each imported by name where its stack is installed; none has a loss or an EM of its own."""
