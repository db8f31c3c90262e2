"""Robust preference optimization (RE-PO) for Megatron-Core: preference losses that model their annotators."""

from nemo_rpo.errors import RPOError

__all__ = ["RPOError", "__version__"]
__version__ = "0.1.0"
