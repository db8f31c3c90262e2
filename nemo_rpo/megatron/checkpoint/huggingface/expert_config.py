"""The keys of ``config.json`` about experts ↔ :class:`~nemo_rpo.config.experts.expert_shape.Experts`.

Names are those of ``transformers``' ``MixtralConfig``, ``Qwen2MoeConfig``, ``Qwen3MoeConfig`` and ``Glm4MoeConfig``.
Their routers differ in three things: whether the scores of the chosen experts add up to 1 (Mixtral always; Qwen where
``norm_topk_prob`` says so), whether they are a softmax of all experts or a sigmoid of each (GLM), and in what chooses
the experts (GLM adds a bias, and may first choose groups by the sum of their two best experts).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.config.experts.expert_shape import Experts, check_router, layer_pattern
from nemo_rpo.config.model_values import check_values
from nemo_rpo.errors import CheckpointError, ConfigError
from nemo_rpo.megatron.checkpoint.huggingface.expert_mapping import family_of

# model_type → class, and the names of: the number of experts, the size of one, how many a token has.
EXPERT_CLASSES = {
    "mixtral": "MixtralForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
}
_COUNTS = {  # transformers 5.24 writes num_local_experts for Qwen3 too
    "mixtral": ("num_local_experts",),
    "qwen2_moe": ("num_experts",),
    "qwen3_moe": ("num_experts", "num_local_experts"),
    "glm4_moe": ("n_routed_experts",),
}
_WHOLE = ("num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size", "n_shared_experts")
_WHOLE += ("n_group", "topk_group", "decoder_sparse_step")
_FLAGS = ("norm_topk_prob", "qkv_bias", "use_qk_norm")


def experts_from_config(config: Mapping[str, Any], where: str) -> Experts | None:
    """The experts of the model that ``config`` describes; None of a dense one.

    Raises:
        CheckpointError: a size is missing, or no number. ConfigError: Megatron-Core has no such router.
    """
    family = config["model_type"]
    if family not in EXPERT_CLASSES:
        return None
    check_values(config, where, (*_WHOLE, *_COUNTS[family]), ("routed_scaling_factor",), _FLAGS)
    size = "intermediate_size" if family == "mixtral" else "moe_intermediate_size"
    experts = Experts(
        num_moe_experts=_needed(config, where, *_COUNTS[family]),
        moe_ffn_hidden_size=_needed(config, where, size),
        moe_router_topk=_needed(config, where, "num_experts_per_tok"),
        moe_layer_freq=layer_pattern(_expert_layers(config, where), config["num_hidden_layers"]),
        **_glm_router(config, where) if family == "glm4_moe" else _softmax_router(config, where),
    )
    check_router(experts, f"{where}: ")
    return experts


def _needed(config: Mapping[str, Any], where: str, *names: str) -> int:
    found = next((config[name] for name in names if config.get(name) is not None), None)
    if found is None:
        raise CheckpointError(f"{where} has no {names[0]}")
    return found


def _expert_layers(config: Mapping[str, Any], where: str) -> list[int]:
    layers = range(config["num_hidden_layers"])
    if config["model_type"] == "glm4_moe":
        first = config.get("first_k_dense_replace", 1)
        if not isinstance(first, int):
            raise CheckpointError(f"{where}: first_k_dense_replace must be a whole number")
        return [int(layer >= first) for layer in layers]
    step, dense = config.get("decoder_sparse_step") or 1, config.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise CheckpointError(f"{where}: mlp_only_layers must be a list")
    return [int(layer not in dense and (layer + 1) % step == 0) for layer in layers]


def _softmax_router(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    if config["model_type"] == "mixtral":
        return {}
    found: dict[str, Any] = {"moe_router_pre_softmax": not config.get("norm_topk_prob", False)}
    if config["model_type"] == "qwen2_moe":
        shared = _needed(config, where, "shared_expert_intermediate_size")
        found |= {"moe_shared_expert_intermediate_size": shared, "moe_shared_expert_gate": True}
    return found


def _glm_router(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    groups, chosen = config.get("n_group") or 1, config.get("topk_group") or 1
    topk, scale = _needed(config, where, "num_experts_per_tok"), config.get("routed_scaling_factor", 1.0)
    shared = (config.get("n_shared_experts") or 0) * _needed(config, where, "moe_intermediate_size")
    if not config.get("norm_topk_prob", True):
        raise ConfigError(f"{where}: norm_topk_prob=false is not supported; Megatron-Core makes the scores add up to 1")
    if groups > 1 and topk != 2 * chosen:
        raise ConfigError(
            f"{where}: n_group={groups} with num_experts_per_tok={topk} and topk_group={chosen} is not supported: "
            "Megatron-Core judges a group by as many experts as a token takes of it, transformers by two"
        )
    return {
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_num_groups": groups if groups > 1 else None,
        "moe_router_group_topk": chosen if groups > 1 else None,
        "moe_router_topk_scaling_factor": None if scale == 1.0 else float(scale),
        "moe_shared_expert_intermediate_size": shared or None,
    }


def config_of_experts(a: GPTArchitecture) -> dict[str, Any]:
    """The keys of :func:`experts_from_config` for a model that has no ``config.json``, ``model_type`` among them.

    Raises :class:`ConfigError` if its family has no key for how it is built.
    """
    experts, family = a.experts, family_of(a)
    f, shared = experts.moe_ffn_hidden_size, experts.moe_shared_expert_intermediate_size or 0
    pattern = [int(experts.in_layer(layer)) for layer in range(a.num_layers)]
    config: dict[str, Any] = {
        "architectures": [EXPERT_CLASSES[family]],
        "model_type": family,
        _COUNTS[family][0]: experts.num_moe_experts,
        "num_experts_per_tok": experts.moe_router_topk,
    }
    if family == "mixtral":
        config["intermediate_size"] = f
    else:
        config["moe_intermediate_size"] = f
    if family in ("qwen2_moe", "qwen3_moe"):
        config |= {
            "norm_topk_prob": not experts.moe_router_pre_softmax,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [layer for layer, sparse in enumerate(pattern) if not sparse],
        }
    if family == "qwen2_moe":
        config |= {"shared_expert_intermediate_size": shared, "qkv_bias": a.qkv_bias}
    if family == "glm4_moe":
        config |= {
            "first_k_dense_replace": pattern.index(1),
            "n_shared_experts": shared // f,
            "n_group": experts.moe_router_num_groups or 1,
            "topk_group": experts.moe_router_group_topk or 1,
            "routed_scaling_factor": experts.moe_router_topk_scaling_factor or 1.0,
            "norm_topk_prob": True,
            "use_qk_norm": a.qk_layernorm,
            "attention_bias": a.qkv_bias,
            "partial_rotary_factor": a.rotary_percentage,
        }
    return config
