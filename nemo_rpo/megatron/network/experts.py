"""Layers of experts: what Megatron's configuration is told of them, and which spec each layer of a stage has.

Under Transformer Engine the experts of a rank are one grouped product; elsewhere they run one after the other, each on
its own tokens. No token is dropped, whatever the load: its log-prob must not depend on the others of its batch. The
router's scores are fp32 in every precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.errors import ConfigError


def expert_arguments(architecture: GPTArchitecture, cfg: RunConfig, grouped: bool) -> dict[str, Any]:
    """Arguments of ``TransformerConfig``; none of a dense model. ``grouped``: Transformer Engine's grouped products.

    Raises :class:`ConfigError` for kernels of Transformer Engine where it is not in use.
    """
    experts, model = architecture.experts, cfg.model
    if experts is None:
        return {}
    if model.moe_permute_fusion and not grouped:
        raise ConfigError("model.moe_permute_fusion=true needs a GPU and Transformer Engine: set it to false")
    freq = experts.moe_layer_freq
    return {
        **asdict(experts),
        "moe_layer_freq": list(freq) if isinstance(freq, tuple) else freq,
        "moe_grouped_gemm": grouped,
        "moe_permute_fusion": model.moe_permute_fusion,
        **routing_arguments(cfg),
    }


def routing_arguments(cfg: RunConfig) -> dict[str, Any]:
    """Those that are the run's, whoever builds the model: how tokens travel, the router's losses, layout of experts."""
    model = cfg.model
    return {
        "moe_router_dtype": "fp32",
        "moe_token_dispatcher_type": model.moe_token_dispatcher_type,
        # "none" for a coefficient of 0: Megatron computes, and exchanges, what it multiplies by it.
        "moe_router_load_balancing_type": model.moe_router_load_balancing_type if model.moe_aux_loss_coeff else "none",
        "moe_aux_loss_coeff": model.moe_aux_loss_coeff,
        "moe_z_loss_coeff": model.moe_z_loss_coeff or None,
        "moe_router_bias_update_rate": model.moe_router_bias_update_rate,
        "expert_model_parallel_size": model.expert_model_parallel_size,
        "expert_tensor_parallel_size": model.expert_tensor_parallel_size,
    }


def stage_spec(
    config: TransformerConfig,
    architecture: GPTArchitecture,
    vp_stage: int | None,
    layer_of: Callable[[bool], Any],
    last_norm: Any,
) -> TransformerBlockSubmodules:
    """The layers of a pipeline stage, each with ``layer_of(whether it has experts)``, and the norm after the last."""
    first = get_transformer_layer_offset(config, vp_stage=vp_stage)
    here = range(first, first + get_num_layers_to_build(config, vp_stage=vp_stage))
    kinds = {kind: layer_of(kind) for kind in {architecture.has_experts(layer) for layer in here}}
    specs = [kinds[architecture.has_experts(layer)] for layer in here]
    return TransformerBlockSubmodules(layer_specs=specs, layer_norm=last_norm)
