"""What the adapters of a run under LoRA, and those of its frozen policies, start from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.errors import CheckpointError, ConfigError
from nemo_rpo.megatron.checkpoint.adapter.description import PEFT_CONFIG, check_fits, is_adapter
from nemo_rpo.megatron.checkpoint.adapter.importer import load_peft
from nemo_rpo.megatron.checkpoint.distributed import load_adapters
from nemo_rpo.megatron.model import LoadWeights
from nemo_rpo.megatron.network.lora.attachment import start_afresh
from nemo_rpo.training.origin import weights_fingerprint

_START = "model.peft.restore_from_path"


def check_adapter_start(
    cfg: RunConfig, architecture: GPTArchitecture, base: Path, frozen: Mapping[str, Path | None]
) -> None:
    """Refuses weights where adapters belong, and adapters of another shape or base.

    ``frozen``: frozen policies by their keys of ``model.rpo``; each is an adapter, or the reference the base.

    Raises:
        CheckpointError: a folder that is not there or cannot be read.
        ConfigError: with the setting to change.
    """
    peft = cfg.model.peft
    if not peft.lora:
        return
    base_weights = weights_fingerprint(str(base))
    given = None if peft.restore_from_path is None else Path(peft.restore_from_path)
    for key, path in {_START: given, **{f"model.rpo.{key}": path for key, path in frozen.items()}}.items():
        if path is None or (key == "model.rpo.reference_from" and weights_fingerprint(str(path)) == base_weights):
            continue
        if not path.is_dir() or not is_adapter(path):
            what = "is not a folder on this machine" if not path.is_dir() else "holds no adapter"
            raise CheckpointError(f"{key}={path} {what}: name a folder of peft's, or a checkpoint of a run under LoRA")
        check_fits(path, peft, architecture, base_weights)


def check_whole_weights(cfg: RunConfig, base: Path, frozen: Mapping[str, Path | None]) -> None:
    """Raises :class:`ConfigError` for an adapter where all weights of a model belong."""
    if is_adapter(base):
        raise ConfigError(
            f"pretrained_checkpoint.restore_from_path={base} is an adapter: name its base there, and the adapter by "
            f"{_START} with model.peft.peft_scheme=lora"
        )
    for key, path in {} if cfg.model.peft.lora else frozen.items():
        if path is not None and is_adapter(path):
            raise ConfigError(
                f"model.rpo.{key}={path} is an adapter, and all weights are trained: set model.peft.peft_scheme=lora, "
                "or name the earlier round's merged weights"
            )


def adapter_loader(path: Path, architecture: GPTArchitecture, cfg: RunConfig) -> LoadWeights:
    """What fills the adapters of model chunks from a folder of peft's, or from a checkpoint of this package."""
    if (path / PEFT_CONFIG).is_file():
        return partial(load_peft, folder=path, architecture=architecture, peft=cfg.model.peft)
    return partial(load_adapters, path)


def frozen_adapter_loader(path: Path, architecture: GPTArchitecture, cfg: RunConfig) -> LoadWeights:
    """What makes the adapters of model chunks those of a frozen policy; new ones are the base."""
    return adapter_loader(path, architecture, cfg) if is_adapter(path) else start_afresh
