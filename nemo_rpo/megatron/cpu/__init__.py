"""The engine on a CPU: Megatron-Core over gloo ranks, and the layers' kernels where Transformer Engine does not run."""

from nemo_rpo.megatron.cpu.patches import CPU, install

__all__ = ["CPU", "install"]
