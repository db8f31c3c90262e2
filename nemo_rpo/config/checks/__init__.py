"""Checks of settings against each other, for :mod:`nemo_rpo.config.validate`."""
