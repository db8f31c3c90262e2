"""The ``rpo`` block where another trainer holds the configuration: the same settings, under that trainer's key."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any

from nemo_rpo.config.loss import base_loss
from nemo_rpo.config.schema import DPOConfig, ModelConfig, RPOConfig
from nemo_rpo.config.types import Mismatch, convert, hints_of
from nemo_rpo.em.em_settings import EMSettings
from nemo_rpo.errors import ConfigError
from nemo_rpo.losses import COLUMNS, PreferenceLoss
from nemo_rpo.losses.options import nearest


@dataclass
class HostedRPOConfig(RPOConfig):
    """The settings of ``model.rpo``, and where the host's data has the annotator."""

    annotator_key: str | None = "annotator"  # null: the data has no ids, all labels are one annotator's
    allow_new_annotators: bool = False  # on resume


NO_COLUMNS = (
    "nothing reads it here. TRL's preference_dataset(keys=…) and Megatron-Bridge's dataset.columns take it; NeMo-RL "
    "and NeMo-Aligner read their files themselves, so write one under their names first: nemo-rpo convert FILE "
    "--columns NAME=COLUMN,… --to nemo_rl (or nemo_aligner) --out OUT"
)
_OF_THE_LOSS = {"enabled", "base_loss", "loss_options", "allow_noise_model"}


def rpo_config(
    values: RPOConfig | Mapping[str, Any] | None, block: str, sweeps: bool = False, used: Collection[str] = ()
) -> HostedRPOConfig:
    """The settings of a block, over their defaults, checked.

    Args:
        values: what the user wrote: a mapping, a dataclass, or None for the defaults.
        block: the block's name in the user's configuration, for messages (``dpo.robust``).
        sweeps: the stack can run full-batch sweeps.
        used: settings of the engine that mean something in the stack too.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a value of another type or out of its range, or a
            setting that this stack would ignore.
    """
    given = _given(values) if isinstance(values, RPOConfig) else {} if values is None else values
    cfg = _section(HostedRPOConfig, given, block)
    try:
        cfg.validate()
    except ConfigError as exc:
        raise ConfigError(str(exc).replace("model.rpo.", f"{block}.")) from exc
    _refuse_ignored(cfg, block, sweeps, used)
    return cfg


def dpo_config(values: DPOConfig | Mapping[str, Any] | None, block: str) -> DPOConfig:
    """The settings of ``model.dpo`` in a block of that name, over their defaults.

    Raises:
        ConfigError: an unknown key (with the nearest known one), or a value of another type or out of its range.
    """
    return values if isinstance(values, DPOConfig) else _section(DPOConfig, values or {}, block)


def log_prob_loss(rpo: RPOConfig, dpo: DPOConfig, block: str, columns: Collection[str] = ()) -> PreferenceLoss:
    """The base loss of the block, where all there is are log-probs of policy and reference, and lengths.

    Args:
        rpo: the block. dpo: the host trainer's settings of the loss, under this package's names.
        columns: side columns that the stack has beside them.

    Raises:
        ConfigError: an unknown loss or option, a loss that needs more, or one that the EM must not be put on top of.
    """
    try:
        loss = base_loss(ModelConfig(dpo=dpo, rpo=rpo))
    except ConfigError as exc:
        raise ConfigError(str(exc).replace("model.rpo.", f"{block}.")) from exc
    if loss.unpaired:
        raise ConfigError(
            f"{block}.base_loss={loss.name} takes completions judged alone, and this trainer reads pairs: choose "
            "another loss, or train with this package's own engine"
        )
    missing = sorted(loss.needs - {"policy", "reference", "lengths", *columns})
    if missing:
        described = "; ".join(f"'{name}' ({COLUMNS[name].meaning})" for name in missing)
        raise ConfigError(
            f"{block}.base_loss={loss.name} needs more than the log-probs that this trainer gives: {described}; "
            "choose another loss, or train with this package's own engine"
        )
    return loss


def _given(values: RPOConfig) -> dict[str, Any]:
    """What a dataclass holds beyond its defaults."""
    return {spec.name: value for spec in fields(values) if (value := getattr(values, spec.name)) != _default(spec)}


def _default(spec: Field) -> Any:
    return spec.default if spec.default is not MISSING else spec.default_factory()


def _section(schema: type, values: Mapping[str, Any], block: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{block} must be a mapping of settings; got {values!r}")
    hints = hints_of(schema)
    for key in values:
        if key == "columns" and key not in hints:
            raise ConfigError(f"{block}.columns: {NO_COLUMNS}")
        if key not in hints:
            raise ConfigError(f"unknown key {block}.{key}{nearest(key, hints)}")
    return schema(**{key: _setting(hints[key], value, f"{block}.{key}") for key, value in values.items()})


def _setting(hint: Any, value: Any, path: str) -> Any:
    if is_dataclass(hint):
        return value if isinstance(value, hint) else _section(hint, value, path)
    try:
        return convert(hint, value)
    except Mismatch as exc:
        raise ConfigError(f"{path} must be {exc}; got {value!r}") from exc


def _refuse_ignored(cfg: RPOConfig, block: str, sweeps: bool, used: Collection[str]) -> None:
    if cfg.sweep != "none" and not sweeps:
        raise ConfigError(
            f"{block}.sweep={cfg.sweep} needs a pass over the data that this trainer has no place for: set none"
        )
    of_the_em = {spec.name for spec in fields(EMSettings)}
    for spec in fields(RPOConfig):
        of_the_engine = spec.name not in of_the_em | _OF_THE_LOSS | set(used)
        if of_the_engine and getattr(cfg, spec.name) != _default(spec):
            raise ConfigError(
                f"{block}.{spec.name} is a setting of this package's own engine and would be ignored: drop it"
            )
