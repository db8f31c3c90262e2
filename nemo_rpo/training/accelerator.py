"""The device of a run: a GPU, or the CPU with Megatron-Core prepared for it."""

from __future__ import annotations

from nemo_rpo.config.schema import RunConfig
from nemo_rpo.errors import ConfigError


def use_accelerator(cfg: RunConfig) -> None:
    """Prepares this process for ``trainer.accelerator``; before Megatron-Core is imported. Raises :class:`ConfigError`
    without a usable GPU.
    """
    if cfg.trainer.accelerator == "cpu":
        from nemo_rpo.megatron import cpu

        cpu.install()
        return
    import torch

    if not torch.cuda.is_available():
        raise ConfigError("trainer.accelerator=gpu, but this machine has no usable GPU: set trainer.accelerator=cpu")
