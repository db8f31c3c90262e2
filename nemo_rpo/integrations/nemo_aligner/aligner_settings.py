"""``model.rpo`` and ``model.dpo`` of a NeMo-Aligner recipe, as this package reads them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nemo_rpo.config.schema import DPOConfig
from nemo_rpo.integrations.rpo_block import HostedRPOConfig, log_prob_loss, rpo_config
from nemo_rpo.losses import PreferenceLoss

BLOCK = "model.rpo"


def rpo_settings(model: DictConfig) -> HostedRPOConfig:
    """The block ``model.rpo``; its defaults where the recipe has none. ``model`` is the section ``model``."""
    return rpo_config(_plain(model.get("rpo")), BLOCK)


def annotator_key(model: DictConfig) -> str | None:
    """The field of the data with the annotator's id; None where nobody asks for it."""
    rpo = rpo_settings(model)
    return rpo.annotator_key if rpo.enabled else None


def dpo_settings(model: DictConfig) -> DPOConfig:
    """``model.dpo``, whose names are the same here; keys that the losses do not read are left out."""
    given = _plain(model.dpo)
    known = {spec.name for spec in fields(DPOConfig)}
    return DPOConfig(**{name: value for name, value in given.items() if name in known and value is not None})


def base_loss(model: DictConfig) -> PreferenceLoss:
    """The base loss of a recipe; rewards of the data reach it as ``margin``.

    Raises:
        ConfigError: an unknown loss or option, one that needs more than log-probs and rewards, or one that the EM must
            not be put on top of.
    """
    return log_prob_loss(rpo_settings(model), dpo_settings(model), BLOCK, columns=("margin",))


def _plain(section: Any) -> Any:
    return OmegaConf.to_container(section, resolve=True) if isinstance(section, DictConfig) else section
