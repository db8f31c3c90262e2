"""Which loss a configuration asks for.

The one place that reads ``model.rpo.base_loss`` and ``model.dpo.preference_loss``, and the weights of a step's terms.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from nemo_rpo import em, losses  # their names are looked up when a loss is built: settings are read without torch
from nemo_rpo.config.schema import DPOConfig, ModelConfig, RPOConfig
from nemo_rpo.errors import ConfigError

if TYPE_CHECKING:
    from nemo_rpo.em import PairStep
    from nemo_rpo.losses import PreferenceLoss


def base_loss(model: ModelConfig) -> PreferenceLoss:
    """The base loss with its options: ``model.dpo``'s shared ones where the loss has them, then
    ``model.rpo.loss_options``.

    Raises:
        ConfigError: unknown loss or option; a previous iterate that the loss has no use for; a loss that the EM must
            not be put on top of.
    """
    name = model.rpo.base_loss or model.dpo.preference_loss
    known = {spec.name for spec in fields(losses.loss_class(name))}
    shared = {
        "beta": model.dpo.ref_policy_kl_penalty,
        "average_log_probs": model.dpo.preference_average_log_probs,
        "gt_reward_scale": model.dpo.gt_reward_scale,
    }
    given = {option: value for option, value in shared.items() if option in known and value is not None}
    options = given | model.rpo.loss_options
    loss = losses.build_loss(name, **options)
    _refuse_policies_without_use(loss, model.rpo)
    if model.rpo.enabled:
        _refuse_double_correction(loss, model)
    return loss


def pair_step(loss: PreferenceLoss, dpo: DPOConfig, rpo: RPOConfig) -> PairStep:
    """The step around the base ``loss``, with the weights of ``model.dpo`` and the objective of ``model.rpo``."""
    average = dpo.preference_average_log_probs if dpo.sft_average_log_probs is None else dpo.sft_average_log_probs
    return em.PairStep(
        loss=loss,
        objective=rpo.objective_in_force,
        preference_weight=dpo.preference_loss_weight,
        sft_weight=dpo.sft_loss_weight,
        average_sft=average,
    )


def _refuse_policies_without_use(loss: PreferenceLoss, rpo: RPOConfig) -> None:
    if rpo.previous_iterate is not None and "base_logps" not in loss.needs:
        raise ConfigError(
            f"model.rpo.previous_iterate is set, but the loss '{loss.name}' compares with no earlier policy: unset it"
        )
    if rpo.reference_from is None or "reference" in loss.needs:
        return
    if "base_logps" not in loss.needs:
        raise ConfigError(f"model.rpo.reference_from is set, but the loss '{loss.name}' has no reference: unset it")
    if rpo.previous_iterate is not None:
        raise ConfigError(
            f"the loss '{loss.name}' compares with one policy alone, and both model.rpo.previous_iterate and "
            "model.rpo.reference_from are set: unset one of them"
        )


def _refuse_double_correction(loss: PreferenceLoss, model: ModelConfig) -> None:
    if loss.models_noise and not model.rpo.allow_noise_model:
        raise ConfigError(
            f"the loss '{loss.name}' already models label noise, and the EM would correct it a second time: "
            "set model.rpo.enabled=false, or model.rpo.allow_noise_model=true to force it"
        )
    if loss.needs_link_tau and model.rpo.link_tau == 1.0 and not model.rpo.allow_noise_model:
        raise ConfigError(
            f"the margins of the loss '{loss.name}' are hundreds of nats, so every posterior would be 0 or 1: "
            "set model.rpo.link_tau to their scale, or model.rpo.allow_noise_model=true to force it"
        )
