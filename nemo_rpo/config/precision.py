"""Which precisions of log-probs a run may ask for, as far as its settings alone tell."""

from __future__ import annotations

from nemo_rpo.config.schema import RunConfig
from nemo_rpo.errors import ConfigError


def check_precision(cfg: RunConfig) -> None:
    """Raises :class:`ConfigError` for FP8 that could not be run, or whose margins would mean nothing.

    The ranks check what the card and Transformer Engine can do (:mod:`nemo_rpo.megatron.network.precision`).
    """
    rpo = cfg.model.rpo
    policy, reference = rpo.precisions()
    for name, precision in (("logprob_precision", policy), ("reference_logprob_precision", reference)):
        if precision == "fp8_delayed":
            raise ConfigError(
                f"model.rpo.{name}=fp8_delayed: delayed scales are updated in training steps and never under no_grad, "
                "so a frozen reference would keep scales of 1: set fp8_tensorwise, fp8_blockwise or fp8_mxfp8"
            )
        if precision == "bf16":
            continue
        if cfg.trainer.accelerator == "cpu":
            raise ConfigError(
                f"model.rpo.{name}={precision} needs trainer.accelerator=gpu: FP8 products are Transformer Engine's; "
                "set it to bf16"
            )
        if cfg.trainer.precision != "bf16":
            raise ConfigError(f"model.rpo.{name}={precision} needs trainer.precision=bf16")
    if policy != reference and not rpo.allow_asymmetric_precision:
        raise ConfigError(
            f"model.rpo.logprob_precision={policy} and model.rpo.reference_logprob_precision={reference} differ, so "
            "initial margins would be rounding noise instead of 0: set both alike, or "
            "model.rpo.allow_asymmetric_precision=true to force it"
        )
