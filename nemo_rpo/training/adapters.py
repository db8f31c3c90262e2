"""The adapters of a run under LoRA: what they start from, what checkpoints and the log say of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nemo_rpo.config.adapters.targets import targets_in
from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.errors import CheckpointError, ConfigError
from nemo_rpo.megatron.checkpoint.adapter.description import (
    LORA,
    PEFT_CONFIG,
    AdapterDescription,
    check_fits,
    is_adapter,
)
from nemo_rpo.megatron.checkpoint.adapter.importer import load_peft
from nemo_rpo.megatron.checkpoint.distributed import load_adapters
from nemo_rpo.megatron.model import LoadWeights, MegatronGPTRPOModel
from nemo_rpo.megatron.network.lora.attach import start_afresh
from nemo_rpo.megatron.network.lora.switch import trained_weights
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


def described(cfg: RunConfig, architecture: GPTArchitecture, origin: Mapping[str, str]) -> dict[str, Any]:
    """The entry of ``run.json``; none where all weights are trained."""
    peft = cfg.model.peft
    return {LORA: AdapterDescription.of_run(peft, architecture, origin["weights"]).to_dict()} if peft.lora else {}


def facts(cfg: RunConfig, model: MegatronGPTRPOModel) -> dict[str, str]:
    """What the start-up log says. Collective over the pipeline's ranks."""
    peft = cfg.model.peft
    if not peft.lora:
        return {}
    trained, total = trained_weights(model.model)
    layers = ", ".join(targets_in(model.architecture, peft.lora_tuning.target_modules))
    layers += " (experts have none)" if model.architecture.experts else ""
    shape = f"rank {peft.lora_tuning.adapter_dim}, scale {peft.scale:g}, beside {layers}"
    start = "the base, adapters off" if peft.restore_from_path is None else "the adapter that it starts from"
    reference = cfg.model.rpo.reference_from or start
    return {
        "LoRA": f"{shape}; the reference is {reference}",
        "trainable": f"{trained:,} of {total:,} weights ({trained / total:.2%})",
    }
