"""Tokenised pairs on disk: built once, memory-mapped by every rank."""
