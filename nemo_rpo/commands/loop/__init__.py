"""The commands of a round, each usable alone: samples, verdicts, and rows that train a judge."""
