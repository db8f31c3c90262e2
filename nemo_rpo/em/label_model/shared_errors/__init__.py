"""Errors that annotators share: found, weighed, and what is reported where they may outweigh the truth."""
