"""The keys of ``model`` about mixtures of experts, under Megatron's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from nemo_rpo.config.types import Count, NonNegative, Positive, Range


@dataclass
class ExpertSettings:
    """Inherited by ``model``. The second block is the architecture: read from the checkpoint where there is one."""

    expert_model_parallel_size: Count = 1  # ranks that share out the experts, taken from TP × CP × DP
    expert_tensor_parallel_size: Count | None = None  # ranks that split each expert; null: tensor_model_parallel_size
    moe_token_dispatcher_type: Literal["alltoall", "allgather"] = "alltoall"
    moe_permute_fusion: bool = False  # Transformer Engine's kernels sort tokens by expert; false: torch's
    # Losses of the router alone, added to the gradient and to no figure; their means are over micro-batches.
    moe_aux_loss_coeff: NonNegative = 0.0
    moe_z_loss_coeff: NonNegative = 0.0
    moe_router_load_balancing_type: Literal["aux_loss", "seq_aux_loss", "global_aux_loss"] = "aux_loss"
    moe_router_bias_update_rate: NonNegative = 0.0  # the expert bias is part of the frozen reference: 0

    num_moe_experts: Count | None = None  # null: every layer has one MLP
    moe_ffn_hidden_size: Count | None = None  # null: ffn_hidden_size
    moe_router_topk: Count = 2
    # N: a layer of experts, then N - 1 with one MLP, again and again; or 0 or 1 for each layer.
    moe_layer_freq: Count | list[Annotated[int, Range(0, 1)]] = 1
    moe_router_score_function: Literal["softmax", "sigmoid"] = "softmax"
    moe_router_pre_softmax: bool = False  # the scores of all experts add up to 1, not those of the chosen ones
    moe_router_enable_expert_bias: bool = False
    moe_router_num_groups: Count | None = None
    moe_router_group_topk: Count | None = None
    moe_router_topk_scaling_factor: Positive | None = None
    moe_shared_expert_intermediate_size: Count | None = None  # null: no expert that takes every token
    moe_shared_expert_gate: bool = False
