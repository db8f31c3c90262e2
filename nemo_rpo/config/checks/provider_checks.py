"""What ``model.provider=megatron_bridge`` does not go with."""

from __future__ import annotations

from nemo_rpo.config.loss import base_loss
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.errors import ConfigError

_HEADS = frozenset(("score", "scores", "embedding", "coefficients"))


def check_provider(cfg: RunConfig) -> None:
    """Raises :class:`ConfigError` with the setting that does not go with the model's provider."""
    model, params = cfg.model, cfg.exp_manager.checkpoint_callback_params
    if model.provider != "megatron_bridge":
        return
    if cfg.pretrained_checkpoint.restore_from_path is None:
        raise ConfigError(
            "model.provider=megatron_bridge needs pretrained_checkpoint.restore_from_path, the Hugging Face folder "
            "whose architecture it is to build"
        )
    loss = base_loss(model)
    refused = {
        "model.data.packed_sequence=true": model.data.packed_sequence,
        f"model.context_parallel_size={model.context_parallel_size}": model.context_parallel_size > 1,
        "model.peft.peft_scheme=lora": model.peft.lora,
        f"model.rpo.logprob_precision={model.rpo.logprob_precision}": model.rpo.logprob_precision != "bf16",
        "model.rpo.logprob_head=liger": model.rpo.logprob_head == "liger",
        f"the loss '{loss.name}', which trains a head of its own": bool(loss.needs & _HEADS),
        "exp_manager.checkpoint_callback_params.save_nemo_on_train_end=true": params.save_nemo_on_train_end,
    }
    for setting, given in refused.items():
        if given:
            raise ConfigError(f"model.provider=megatron_bridge does not go with {setting}: set model.provider=nemo_rpo")
