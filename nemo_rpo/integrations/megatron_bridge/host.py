"""Settings of Megatron-Bridge that go with this adapter, and those under which the numbers would be wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megatron.bridge.utils.instantiate_utils import register_allowed_target_prefix

from nemo_rpo.errors import ConfigError
from nemo_rpo.integrations.megatron_bridge.data import PreferenceDatasetProvider

if TYPE_CHECKING:
    from nemo_rpo.integrations.megatron_bridge.checkpoint import RPOCheckpointManager
    from nemo_rpo.integrations.megatron_bridge.step import RPOForwardStep

MANAGER = "nemo_rpo.integrations.megatron_bridge.RPOCheckpointManager"


def use_rpo(cfg: Any) -> Any:
    """Makes a recipe's ``ConfigContainer`` fit, in place, and returns it.

    η goes into its checkpoints, and with several pipeline stages the sizes of what they exchange are sent along: a
    micro-batch of n pairs is 2n sequences, as long as its own longest pair.
    """
    register_allowed_target_prefix("nemo_rpo")
    cfg.checkpoint.custom_manager_class = MANAGER
    if cfg.model.pipeline_model_parallel_size > 1:
        cfg.model.variable_seq_lengths = True
        cfg.model.moe_token_dispatcher_type = "alltoall"  # validated with variable lengths even where nothing is MoE
    return cfg


def check_config(cfg: Any, step: RPOForwardStep, manager: RPOCheckpointManager | None) -> None:
    """Raises :class:`ConfigError` for the first setting that does not go with this adapter, by its name in Bridge."""
    model, dist, optim = cfg.model, cfg.dist, cfg.optimizer
    fp8 = getattr(model, "fp8", None) and getattr(model, "fp8_recipe", None)
    swapped = step.needs_reference and step.rpo.reference == "swapped"
    wrong = {
        f"checkpoint.custom_manager_class must be '{MANAGER}', which keeps η; use_rpo(config) sets it": manager is None,
        "dataset must be a PreferenceDatasetProvider": not isinstance(cfg.dataset, PreferenceDatasetProvider),
        "dataset.dataloader_type must be 'single': the pairs are shuffled already": (
            getattr(cfg.dataset, "dataloader_type", None) != "single"
        ),
        "dataset.seq_length must not be above model.seq_length": (
            getattr(cfg.dataset, "seq_length", 0) > model.seq_length
        ),
        "model.variable_seq_lengths must be true with pipeline_model_parallel_size > 1: a micro-batch of n pairs is 2n "
        "sequences of their own length; use_rpo(config) sets it": (
            model.pipeline_model_parallel_size > 1 and not model.variable_seq_lengths
        ),
        "model.context_parallel_size must be 1: log-probs of a response are summed on one rank": (
            model.context_parallel_size > 1
        ),
        "model.cuda_graph_impl must be 'none': pairs differ in length": (
            getattr(model, "cuda_graph_impl", "none") not in (None, "none")
        ),
        "model.fp8_recipe must not be 'delayed': a frozen reference never updates its scales; take tensorwise or "
        "blockwise": step.needs_reference and fp8 == "delayed",
        "model.mtp_num_layers must be unset: multi-token prediction has a loss of its own": (
            bool(getattr(model, "mtp_num_layers", None))
        ),
        "peft must be unset: a reference without the adapters is not implemented": cfg.peft is not None,
        "dist.use_decentralized_pg must be false": dist.use_decentralized_pg,
        "dist.use_megatron_fsdp and use_torch_fsdp2 must be false: the reference needs whole parameters": (
            dist.use_megatron_fsdp or dist.use_torch_fsdp2
        ),
        "optimizer.reuse_grad_buf_for_mxfp8_param_ag and overlap_param_gather_with_optimizer_step must be false, or "
        "rpo.reference resident: the weights are not in place when a step starts": (
            swapped and (optim.reuse_grad_buf_for_mxfp8_param_ag or optim.overlap_param_gather_with_optimizer_step)
        ),
        "checkpoint.non_persistent_ckpt_type must be unset: η is not in such checkpoints": (
            cfg.checkpoint.non_persistent_ckpt_type is not None
        ),
    }
    for message, applies in wrong.items():
        if applies:
            raise ConfigError(message)
