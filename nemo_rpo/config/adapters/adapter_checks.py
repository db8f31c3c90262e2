"""What adapters do not go with, known from the settings alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemo_rpo.config.adapters.targets import resolve_targets
from nemo_rpo.errors import ConfigError

if TYPE_CHECKING:
    from nemo_rpo.config.schema import RunConfig

_NEED = "needs model.peft.peft_scheme=lora"


def check_adapters(cfg: RunConfig) -> None:
    """Raises :class:`ConfigError` for settings of adapters that do not fit each other or the rest."""
    model, peft = cfg.model, cfg.model.peft
    if not peft.lora:
        if model.rpo.reference == "adapters":
            raise ConfigError(f"model.rpo.reference=adapters {_NEED}: set it to swapped, resident or cached")
        if peft.restore_from_path is not None:
            raise ConfigError(
                f"model.peft.restore_from_path={peft.restore_from_path} {_NEED}: set it, or unset the path"
            )
        return
    resolve_targets(peft.lora_tuning.target_modules)
    if cfg.pretrained_checkpoint.restore_from_path is None:
        raise ConfigError(
            "model.peft.peft_scheme=lora freezes the base, and there is none: set "
            "pretrained_checkpoint.restore_from_path"
        )
    swaps = [
        name
        for name, path in (
            ("model.peft.restore_from_path", peft.restore_from_path),
            ("model.rpo.reference_from", model.rpo.reference_from),
            ("model.rpo.previous_iterate", model.rpo.previous_iterate),
        )
        if path is not None
    ]
    if model.optim.overlap_param_sync and swaps:
        raise ConfigError(
            f"model.optim.overlap_param_sync gathers weights while the adapters of {swaps[0]} are swapped in: set it "
            "to false"
        )
