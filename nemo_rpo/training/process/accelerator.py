"""The device of a run: a GPU, or the CPU with Megatron-Core prepared for it."""

from __future__ import annotations

import os

from nemo_rpo.config.schema import RunConfig
from nemo_rpo.errors import ConfigError

# What cuBLAS, Transformer Engine and NCCL read before their first use: name -> (value, other values that will do).
# Left to itself NCCL orders a sum by sizes and topology.
_DETERMINISTIC = {
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", (":16:8",)),
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": ("0", ()),
    "NCCL_ALGO": ("Ring", ("Tree", "^NVLS")),
}


def use_accelerator(cfg: RunConfig) -> None:
    """Prepares this process for ``trainer.accelerator`` and ``trainer.deterministic``; before Megatron-Core is
    imported.

    Raises :class:`ConfigError` without a usable GPU, or if a variable of the environment forbids determinism.
    """
    on_gpu = cfg.trainer.accelerator == "gpu"
    use_determinism(cfg.trainer.deterministic, on_gpu)
    if not on_gpu:
        from nemo_rpo.megatron import cpu

        cpu.install()
        return
    import torch

    if not torch.cuda.is_available():
        raise ConfigError("trainer.accelerator=gpu, but this machine has no usable GPU: set trainer.accelerator=cpu")


def use_determinism(wanted: bool, on_gpu: bool) -> None:
    """Has torch take deterministic kernels alone (an operation that has none is an error that names it), or any.

    On a GPU this sets ``CUBLAS_WORKSPACE_CONFIG``, ``NVTE_ALLOW_NONDETERMINISTIC_ALGO`` and ``NCCL_ALGO`` where they
    are not set. Megatron-Core has a switch of its own, which
    :func:`nemo_rpo.megatron.network.build.transformer_config` sets.
    """
    import torch

    torch.use_deterministic_algorithms(wanted)
    for name, (value, others) in _DETERMINISTIC.items() if wanted and on_gpu else ():
        found = os.environ.setdefault(name, value)
        if found not in (value, *others):
            raise ConfigError(f"trainer.deterministic does not go with {name}={found}: unset it, or set it to {value}")
