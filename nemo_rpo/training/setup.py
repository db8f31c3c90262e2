"""From a configuration to the model of a run: where it starts, its architecture, its weights."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import torch

from nemo_rpo.config.architecture import GPTArchitecture, architecture_from_yaml
from nemo_rpo.config.experts.expert_shape import check_expert_layout, check_fresh_experts
from nemo_rpo.config.loss import base_loss
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.data.cache.store import PreferenceCache
from nemo_rpo.em.belief import Belief
from nemo_rpo.em.groups.start import check_identifiable
from nemo_rpo.errors import CheckpointError, ConfigError
from nemo_rpo.megatron.checkpoint.distributed import architecture_of, load_weights
from nemo_rpo.megatron.checkpoint.huggingface.config import architecture_from_hf
from nemo_rpo.megatron.checkpoint.huggingface.importer import load_hf_weights
from nemo_rpo.megatron.checkpoint.nemo.archive import is_nemo
from nemo_rpo.megatron.checkpoint.nemo.config import architecture_from_nemo
from nemo_rpo.megatron.checkpoint.nemo.importer import load_nemo_weights
from nemo_rpo.megatron.checkpoint.run_file import RUN_FILE, read_run
from nemo_rpo.megatron.model import LoadWeights, MegatronGPTRPOModel
from nemo_rpo.megatron.network.autobridge import architecture_from_bridge, load_bridge_weights
from nemo_rpo.megatron.step.em import build_reliability, signed_labels
from nemo_rpo.training.adapters.adapter_start import (
    adapter_loader,
    check_adapter_start,
    check_whole_weights,
    frozen_adapter_loader,
)
from nemo_rpo.training.data_of_run import tokenizer_spec


def starting_point(cfg: RunConfig) -> Path | None:
    """Folder or ``.nemo`` of the starting weights; None for fresh ones. :class:`CheckpointError` if it is not there."""
    return _place("pretrained_checkpoint.restore_from_path", cfg.pretrained_checkpoint.restore_from_path)


def frozen_policies(cfg: RunConfig) -> dict[str, Path | None]:
    """Folder or ``.nemo`` of the weights of each frozen policy, by its key of ``model.rpo``: π_t (None: the reference),
    the reference and π₀ (None: the start). :class:`CheckpointError` if one is not there.
    """
    keys = ("previous_iterate", "reference_from", "first_policy")
    return {key: _place(f"model.rpo.{key}", getattr(cfg.model.rpo, key)) for key in keys}


def _place(key: str, path: str | None) -> Path | None:
    if path is not None and not os.path.isdir(path) and not is_nemo(path):
        raise CheckpointError(f"{key}={path} is not a folder or a .nemo on this machine")
    return None if path is None else Path(path)


def _check_players(cfg: RunConfig, start: Path) -> None:
    """Raises :class:`ConfigError` where the start's head gives strengths of other models, or in another order."""
    ours = cfg.model.data.players
    saved = read_run(start).get("players") if ours and (start / RUN_FILE).is_file() else None
    if saved and saved != ours:
        raise ConfigError(
            f"{start} ranks the models {', '.join(saved)}, in this order, and model.data.players lists others or "
            "another order: set it to the same, or start from weights without such a head"
        )


def check_start(cfg: RunConfig) -> None:
    """Refuses, before any data is read, a model that is not there or that the layout or the texts do not fit.

    Raises:
        CheckpointError, ConfigError: no such folder, neither format, not divisible by the layout, too few positions, or
            a frozen policy of another architecture.
    """
    path, frozen = starting_point(cfg), frozen_policies(cfg)
    if path is None:
        return
    check_whole_weights(cfg, path, frozen)
    _check_players(cfg, path)
    architecture = stored_architecture(path, cfg)
    check_adapter_start(cfg, architecture, path, frozen)
    _check_fits(cfg, architecture)
    for key, other in frozen.items() if not cfg.model.peft.lora else ():
        if other is not None and stored_architecture(other, cfg) != architecture:
            raise ConfigError(
                f"model.rpo.{key}={other} has a different architecture from the starting weights in {path}: "
                "it has to be another state of the same model"
            )


def architecture_for(cfg: RunConfig, cache: PreferenceCache) -> GPTArchitecture:
    """The model's shape, from the checkpoint it starts from, or from ``model.*``.

    Raises:
        CheckpointError, ConfigError: as :func:`check_start`, or a tokenizer with ids beyond the model's vocabulary.
    """
    path = starting_point(cfg)
    if path is None:
        check_fresh_experts(cfg)
    architecture = (
        architecture_from_yaml(cfg.model, cache.vocab_size) if path is None else stored_architecture(path, cfg)
    )
    _check_fits(cfg, architecture)
    if cache.max_token_id >= architecture.vocab_size:
        raise ConfigError(
            f"the tokenizer in {tokenizer_spec(cfg).name} gives ids up to {cache.max_token_id}, but the model's "
            f"vocabulary has {architecture.vocab_size}: set model.tokenizer.type to the tokenizer that belongs to the "
            "checkpoint"
        )
    return architecture


def stored_architecture(path: Path, cfg: RunConfig) -> GPTArchitecture:
    """The shape of the model in a checkpoint, a ``.nemo`` or a Hugging Face folder."""
    if _is_ours(path):
        return architecture_of(path)
    if cfg.model.provider == "megatron_bridge":
        return architecture_from_bridge(path)
    return architecture_from_nemo(path) if is_nemo(path) else architecture_from_hf(path)


def _check_fits(cfg: RunConfig, architecture: GPTArchitecture) -> None:
    model = cfg.model
    architecture.check_parallel(
        model.tensor_model_parallel_size,
        model.pipeline_model_parallel_size,
        model.virtual_pipeline_model_parallel_size,
    )
    check_expert_layout(cfg, architecture)
    length = model.data.seq_length or model.encoder_seq_length
    if length > architecture.max_position_embeddings:
        raise ConfigError(
            f"model.encoder_seq_length={length} is longer than the {architecture.max_position_embeddings} positions "
            "the model was made for: lower it"
        )


def _is_ours(path: Path) -> bool:
    return (path / RUN_FILE).exists()


def check_groups(cfg: RunConfig, cache: PreferenceCache) -> None:
    """Refuses groups of taste that the training data cannot tell apart, see :func:`check_identifiable`."""
    if (groups := base_loss(cfg.model).groups) > 1:
        check_identifiable(signed_labels(cache), groups)


def build_model(
    cfg: RunConfig,
    architecture: GPTArchitecture,
    cache: PreferenceCache,
    total_steps: int,
    device: torch.device,
    belief: Belief | None = None,
) -> MegatronGPTRPOModel:
    """The engine with its starting weights in place, which are also the reference's unless it has its own; ``cache`` is
    the training data, ``belief`` what is known of its annotators.
    """
    start, adapters = starting_point(cfg), cfg.model.peft.restore_from_path
    loader = partial(frozen_adapter_loader if cfg.model.peft.lora else weights_loader, cfg=cfg)
    frozen = {
        key: None if path is None else loader(path, architecture=architecture)
        for key, path in frozen_policies(cfg).items()
    }
    em = build_reliability(cfg.model.rpo, cache, device, base_loss(cfg.model).groups, cfg.model.seed, belief)
    return MegatronGPTRPOModel(
        cfg,
        architecture,
        em,
        total_steps,
        device,
        load_weights=None if start is None else weights_loader(start, architecture, cfg),
        load_previous=frozen["previous_iterate"],
        load_reference=frozen["reference_from"],
        load_first=frozen["first_policy"],
        load_adapters=None if adapters is None else adapter_loader(Path(adapters), architecture, cfg),
    )


def weights_loader(path: Path, architecture: GPTArchitecture, cfg: RunConfig) -> LoadWeights:
    """What fills model chunks with the weights of a checkpoint, a ``.nemo`` or a Hugging Face folder."""
    if _is_ours(path):
        return partial(load_weights, path)
    if cfg.model.provider == "megatron_bridge":
        return partial(load_bridge_weights, folder=path)
    if is_nemo(path):
        return partial(load_nemo_weights, path=path, architecture=architecture)
    return partial(load_hf_weights, folder=path, architecture=architecture)


def target_loader(path: Path, architecture: GPTArchitecture, cfg: RunConfig) -> LoadWeights:
    """What fills model chunks with a trained policy: all weights, or the adapters of a run under LoRA."""
    return adapter_loader(path, architecture, cfg) if cfg.model.peft.lora else weights_loader(path, architecture, cfg)
