"""``dpo.robust``, and the rest of NeMo-RL's configuration that the loss reads, in both of its forms.

v0.6.0 hands plain dictionaries around (``cfg["dpo"]["x"]``); since v0.7.0 the two upper levels are pydantic models that
keep unknown keys (``cfg.dpo.x``) and what is below them stays a dictionary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_rpo.config.schema import DPOConfig
from nemo_rpo.integrations.rpo_block import HostedRPOConfig, rpo_config

BLOCK = "dpo.robust"


def entry(config: Any, name: str, default: Any = None) -> Any:
    """``config[name]`` or ``config.name``, whichever this version's configuration has; else ``default``."""
    if isinstance(config, Mapping):
        return config.get(name, default)
    return getattr(config, name, default)


def robust_config(dpo_config: Any) -> HostedRPOConfig:
    """The block ``dpo.robust`` of a ``dpo`` section; its defaults where there is none."""
    return rpo_config(entry(dpo_config, "robust"), BLOCK)


def dpo_settings(dpo_config: Any) -> DPOConfig:
    """NeMo-RL's settings of the loss under this package's names; what the section leaves out keeps its default here."""
    names = {
        "reference_policy_kl_penalty": "ref_policy_kl_penalty",
        "preference_loss": "preference_loss",
        "preference_loss_weight": "preference_loss_weight",
        "preference_average_log_probs": "preference_average_log_probs",
        "sft_loss_weight": "sft_loss_weight",
        "sft_average_log_probs": "sft_average_log_probs",
    }
    given = {ours: entry(dpo_config, theirs) for theirs, ours in names.items()}
    return DPOConfig(**{name: value for name, value in given.items() if value is not None})
