"""Verdicts of many judges on pairs of responses: chat models, reward models, programs; and whom of them to believe."""
