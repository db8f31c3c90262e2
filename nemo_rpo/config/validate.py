"""What can be known to be wrong before a rank does any work."""

from __future__ import annotations

import re
from dataclasses import is_dataclass
from operator import attrgetter
from typing import Any

from nemo_rpo.config.adapters.adapter_checks import check_adapters
from nemo_rpo.config.checks.player_checks import check_players
from nemo_rpo.config.checks.provider_checks import check_provider
from nemo_rpo.config.experts.expert_shape import expert_ranks, expert_tensor_size
from nemo_rpo.config.lengths import length_multiple
from nemo_rpo.config.loss import base_loss
from nemo_rpo.config.precision import check_precision
from nemo_rpo.config.schema import ModelConfig, RunConfig
from nemo_rpo.config.splits import check_splits
from nemo_rpo.config.types import Mismatch, convert, hints_of
from nemo_rpo.counting import counted
from nemo_rpo.errors import ConfigError
from nemo_rpo.losses.columns import COLUMNS


def validate_config(cfg: RunConfig) -> None:
    """Checks every value against its type and range, and the settings against each other.

    Raises:
        ConfigError: one line that names the first setting to change.
    """
    _check_values(cfg, "")
    cfg.model.rpo.validate()
    check_provider(cfg)
    _check_policies(cfg)
    check_players(cfg)
    check_adapters(cfg)
    _check_router_losses(cfg)
    _check_groups(cfg)
    _check_layout(cfg)
    check_precision(cfg)
    _check_length(cfg)
    _check_packing(cfg)
    _check_recompute(cfg)
    check_splits(cfg.model.data)
    _check_profiles(cfg.model, cfg.trainer.accelerator)
    _check_steps(cfg)


def validate_parallel(cfg: RunConfig, world_size: int) -> None:
    """Checks the layout against the ``world_size`` ranks that there are.

    Raises:
        ConfigError: the ranks are not what the configuration asks for, cannot be split into TP × PP × CP, or do not
            divide the global batch.
    """
    model, trainer = cfg.model, cfg.trainer
    if trainer.devices is not None and trainer.num_nodes * trainer.devices != world_size:
        asked = f"trainer.num_nodes={trainer.num_nodes} × trainer.devices={trainer.devices}"
        raise ConfigError(f"{asked} asks for {trainer.num_nodes * trainer.devices} ranks, but there are {world_size}")
    sizes = {
        "tensor_model_parallel_size": model.tensor_model_parallel_size,
        "pipeline_model_parallel_size": model.pipeline_model_parallel_size,
        "context_parallel_size": model.context_parallel_size,
    }
    model_parallel = 1
    for size in sizes.values():
        model_parallel *= size
    if world_size % model_parallel:
        named = " × ".join(f"model.{name}={size}" for name, size in sizes.items() if size > 1)
        raise ConfigError(f"{world_size} ranks are no multiple of {named}: start a multiple of {model_parallel}")
    _check_expert_ranks(cfg, world_size)
    data_parallel = world_size // model_parallel
    if model.data.packed_sequence:
        _check_packed_batch(cfg, data_parallel)
        return
    if model.global_batch_size % (model.micro_batch_size * data_parallel):
        raise ConfigError(
            f"model.global_batch_size={model.global_batch_size} is no multiple of "
            f"model.micro_batch_size={model.micro_batch_size} × {data_parallel} data-parallel ranks: "
            f"choose a multiple of {model.micro_batch_size * data_parallel}"
        )
    _check_interleaving(cfg, model.global_batch_size // (model.micro_batch_size * data_parallel))


def _check_expert_ranks(cfg: RunConfig, world_size: int) -> None:
    model = cfg.model
    if world_size % (ranks := expert_ranks(model)):
        sizes = {
            "expert_tensor_parallel_size": expert_tensor_size(model),
            "expert_model_parallel_size": model.expert_model_parallel_size,
            "pipeline_model_parallel_size": model.pipeline_model_parallel_size,
        }
        named = " × ".join(f"model.{name}={size}" for name, size in sizes.items() if size > 1)
        raise ConfigError(f"{world_size} ranks are no multiple of {named}: start a multiple of {ranks}")


def _check_packed_batch(cfg: RunConfig, data_parallel: int) -> None:
    """Packs are made of whole pairs, and each data-parallel rank has as many pairs as any other."""
    model = cfg.model
    if model.global_batch_size % data_parallel:
        raise ConfigError(
            f"model.global_batch_size={model.global_batch_size} is no multiple of {data_parallel} data-parallel ranks"
        )
    if model.virtual_pipeline_model_parallel_size:
        pairs, stages = model.global_batch_size // data_parallel, model.pipeline_model_parallel_size
        if pairs < stages:
            raise ConfigError(
                f"model.global_batch_size={model.global_batch_size} is {counted(pairs, 'pair')} on every rank; the "
                "interleaved schedule needs a micro-batch for each of "
                f"model.pipeline_model_parallel_size={stages} stages"
            )


def _check_interleaving(cfg: RunConfig, micro_batches: int) -> None:
    model = cfg.model
    if model.virtual_pipeline_model_parallel_size and micro_batches % model.pipeline_model_parallel_size:
        raise ConfigError(
            f"model.global_batch_size={model.global_batch_size} is {micro_batches} micro-batches on every rank; "
            "the interleaved schedule needs a multiple of "
            f"model.pipeline_model_parallel_size={model.pipeline_model_parallel_size}"
        )


def time_limit(cfg: RunConfig) -> int | None:
    """``exp_manager.max_time_per_run`` (DD:HH:MM:SS) in seconds, or None; :class:`ConfigError` for another form."""
    text = cfg.exp_manager.max_time_per_run
    if text is None:
        return None
    if not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", text):
        raise ConfigError(f"exp_manager.max_time_per_run must be DD:HH:MM:SS, such as 00:03:55:00; got {text!r}")
    days, hours, minutes, seconds = map(int, text.split(":"))
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _check_values(section: Any, prefix: str) -> None:
    for name, hint in hints_of(type(section)).items():
        value = getattr(section, name)
        if is_dataclass(hint):
            _check_values(value, f"{prefix}{name}.")
            continue
        try:
            convert(hint, value)
        except Mismatch as exc:
            raise ConfigError(f"{prefix}{name} must be {exc}; got {value!r}") from exc


def _check_layout(cfg: RunConfig) -> None:
    model = cfg.model
    if model.sequence_parallel and model.tensor_model_parallel_size == 1:
        raise ConfigError("model.sequence_parallel needs model.tensor_model_parallel_size above 1")
    if model.virtual_pipeline_model_parallel_size and model.pipeline_model_parallel_size == 1:
        raise ConfigError(
            f"model.virtual_pipeline_model_parallel_size={model.virtual_pipeline_model_parallel_size} needs "
            "model.pipeline_model_parallel_size above 1"
        )
    if model.rpo.logprob_head == "liger" and cfg.trainer.accelerator == "cpu":
        raise ConfigError("model.rpo.logprob_head=liger needs trainer.accelerator=gpu: set it to chunked")
    if model.optim.overlap_param_sync and not model.optim.overlap_grad_sync:
        raise ConfigError("model.optim.overlap_param_sync needs model.optim.overlap_grad_sync")
    if model.optim.overlap_param_sync and model.reference_in_force == "swapped":
        raise ConfigError(
            "model.optim.overlap_param_sync gathers weights while the reference's are swapped in: "
            "set model.rpo.reference to resident or cached"
        )
    # Beside a cached reference the previous iterate is swapped in.
    if model.optim.overlap_param_sync and model.rpo.reference == "cached" and model.rpo.previous_iterate is not None:
        raise ConfigError(
            "model.optim.overlap_param_sync gathers weights while the previous iterate's are swapped in: "
            "set model.rpo.reference=resident"
        )
    if model.optim.overlap_param_sync and model.optim.name != "distributed_fused_adam":
        raise ConfigError("model.optim.overlap_param_sync needs model.optim.name=distributed_fused_adam")


def _check_groups(cfg: RunConfig) -> None:
    loss, rpo = base_loss(cfg.model), cfg.model.rpo
    if loss.groups == 1:
        return
    if not rpo.enabled:
        raise ConfigError(
            f"the loss '{loss.name}' learns which of its {loss.groups} groups an annotator belongs to by the EM: set "
            "model.rpo.enabled=true, or model.rpo.loss_options.groups=1"
        )
    for name, value in (("believe_from", rpo.believe_from), ("freeze_eta", rpo.freeze_eta)):
        if value:
            raise ConfigError(
                f"model.rpo.{name}={value} is of one reliability an annotator, and the loss '{loss.name}' learns "
                f"weights on {loss.groups} groups: unset it"
            )
    if rpo.sweep != "none":
        raise ConfigError(
            f"model.rpo.sweep={rpo.sweep} fits one truth a pair, and the loss '{loss.name}' has {loss.groups}, one a "
            "group: set it to none"
        )


def _check_policies(cfg: RunConfig) -> None:
    loss = base_loss(cfg.model)
    finer = sorted(need for need in loss.needs if need in COLUMNS and COLUMNS[need].of_reference_tokens)
    if cfg.model.rpo.reference == "cached" and finer:
        raise ConfigError(
            f"model.rpo.reference=cached keeps one log-prob a response, and the loss '{loss.name}' compares with the "
            f"reference token by token ({', '.join(finer)}): set it to swapped or resident"
        )
    if cfg.model.rpo.reference == "cached" and "mismatched_kl" in loss.needs:
        raise ConfigError(
            f"model.rpo.reference=cached keeps log-probs of the data's own completions, and the loss '{loss.name}' "
            "asks the reference for others too: set it to swapped or resident, or model.rpo.base_loss to bco"
        )
    if cfg.model.rpo.embedding_width % 2:
        raise ConfigError(f"model.rpo.embedding_width={cfg.model.rpo.embedding_width} must be even")
    _check_kl(cfg)
    for name, lacking in (("previous_iterate", "no earlier round"), ("reference_from", "nothing to be compared with")):
        if getattr(cfg.model.rpo, name) is not None and cfg.pretrained_checkpoint.restore_from_path is None:
            raise ConfigError(
                f"model.rpo.{name} needs pretrained_checkpoint.restore_from_path: fresh weights have {lacking}"
            )


def _check_router_losses(cfg: RunConfig) -> None:
    model = cfg.model
    for name in ("moe_aux_loss_coeff", "moe_z_loss_coeff"):
        if not getattr(model, name):
            continue
        from nemo_rpo.losses.reduction import Mean  # torch, which the settings are read without

        loss = base_loss(model)
        if not isinstance(loss.reduction, Mean):
            raise ConfigError(
                f"model.{name}={getattr(model, name):g}: the loss '{loss.name}' is no mean over pairs and scales all "
                "gradients after the step, those of the router's loss too; set it to 0"
            )


def _check_kl(cfg: RunConfig) -> None:
    loss, rpo = base_loss(cfg.model), cfg.model.rpo
    if not rpo.measures_kl:
        return
    name, value = next(
        (name, value) for name in ("stop_kl", "first_policy", "kl_to_start") if (value := getattr(rpo, name))
    )
    if "policy" not in loss.needs:
        raise ConfigError(
            f"model.rpo.{name}={value} is of what a policy predicts, and the loss '{loss.name}' trains a reward model: "
            "unset it"
        )
    if not cfg.model.data.data_prefix.get("validation") or cfg.trainer.dpo.val_check_interval == 0:
        raise ConfigError(
            f"model.rpo.{name}={value} is measured in validations: set model.data.data_prefix.validation and "
            "trainer.dpo.val_check_interval above 0"
        )
    if cfg.pretrained_checkpoint.restore_from_path is None:
        raise ConfigError(f"model.rpo.{name}={value} needs pretrained_checkpoint.restore_from_path: set it")


def _check_length(cfg: RunConfig) -> None:
    model = cfg.model
    pieces = length_multiple(model)
    name = "encoder_seq_length" if model.data.seq_length is None else "data.seq_length"
    length = attrgetter(name)(model)
    if length % pieces:
        raise ConfigError(
            f"model.{name}={length} must be a multiple of {pieces} (sequence and context parallel ranks, FP8)"
        )


def _check_packing(cfg: RunConfig) -> None:
    model, data = cfg.model, cfg.model.data
    if not data.packed_sequence:
        for name, default in (("packed_sequence_size", None), ("share_prompts", "auto")):
            if (value := getattr(data, name)) not in (default, "never"):
                raise ConfigError(f"model.data.{name}={value} needs model.data.packed_sequence=true")
        return
    pair = 2 * (data.seq_length or model.encoder_seq_length)
    if data.packed_sequence_size is not None and data.packed_sequence_size < pair:
        raise ConfigError(
            f"model.data.packed_sequence_size={data.packed_sequence_size} has no room for both responses of a "
            f"pair: set at least {pair}, or a shorter model.encoder_seq_length"
        )


def _check_recompute(cfg: RunConfig) -> None:
    model = cfg.model
    granularity = model.activations_checkpoint_granularity
    for name in ("activations_checkpoint_method", "activations_checkpoint_num_layers"):
        given = getattr(model, name)
        if granularity == "full" and given is None:
            raise ConfigError(f"model.activations_checkpoint_granularity=full needs model.{name}")
        if granularity != "full" and given is not None:
            raise ConfigError(f"model.{name}={given} needs model.activations_checkpoint_granularity=full")


def _check_profiles(model: ModelConfig, accelerator: str) -> None:
    for name in ("nsys_profile", "torch_profile"):
        profile = getattr(model, name)
        if profile.enabled and profile.end_step < profile.start_step:
            raise ConfigError(
                f"model.{name}.end_step={profile.end_step} is before model.{name}.start_step={profile.start_step}"
            )
    if model.nsys_profile.enabled and accelerator == "cpu":
        raise ConfigError("model.nsys_profile.enabled needs trainer.accelerator=gpu: set model.torch_profile.enabled")
    if model.nsys_profile.enabled and model.torch_profile.enabled:
        raise ConfigError("model.nsys_profile.enabled and model.torch_profile.enabled use one interface: set one alone")


def _check_steps(cfg: RunConfig) -> None:
    time_limit(cfg)
    sched = cfg.model.optim.sched
    if sched.min_lr > cfg.model.optim.lr:
        raise ConfigError(f"model.optim.sched.min_lr={sched.min_lr:g} is above model.optim.lr={cfg.model.optim.lr:g}")
    if cfg.trainer.dpo.max_steps == 0:
        raise ConfigError("trainer.dpo.max_steps=0 trains nothing: set a number of steps, or -1 for max_epochs")
