"""Mixtures of experts: their settings, their shape, and the layouts that hold them."""
