"""``dpo.robust``, and the rest of NeMo-RL's configuration that the loss reads, in both of its forms.

v0.6.0 hands plain dictionaries around (``cfg["dpo"]["x"]``); since v0.7.0 the two upper levels are pydantic models that
keep unknown keys (``cfg.dpo.x``) and what is below them stays a dictionary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_rpo.config.schema import DPOConfig
from nemo_rpo.errors import ConfigError
from nemo_rpo.integrations.rpo_block import NO_COLUMNS, HostedRPOConfig, rpo_config

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


def refuse_columns(config: Any) -> None:
    """Raises :class:`ConfigError` where the data sets of a configuration have names for columns, which only this
    package's own readers look at.
    """
    data = entry(config, "data") or {}
    for name, section in (
        ("data", data),
        *((f"data.{split}", entry(data, split)) for split in ("train", "validation")),
    ):
        if section and entry(section, "columns"):
            raise ConfigError(f"{name}.columns: {NO_COLUMNS}")
