"""Which Hugging Face tensors make up the experts of a layer, its router and its shared expert.

Families name the same things differently, and the architecture says which family a model is of (:func:`family_of`).
The norm before the experts stands by itself, as under Megatron's Transformer Engine spec; each expert is an axis.

Shapes: E experts, h hidden size, f size of an expert, s of the shared one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.megatron.checkpoint.huggingface.tensors import ROUTER_BIAS, MegatronTensor, RowRun


@dataclass(frozen=True)
class _Names:
    """Of a layer's block, of an expert's three matrices, and of the shared expert."""

    block: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    shared: str = "shared_experts"


_FAMILIES = {
    "mixtral": _Names("block_sparse_moe", "w1", "w3", "w2"),
    "qwen2_moe": _Names(shared="shared_expert"),
    "qwen3_moe": _Names(),
    "glm4_moe": _Names(),
}


def family_of(architecture: GPTArchitecture) -> str:
    """The ``model_type`` of a model with experts: the one family that is built this way."""
    experts = architecture.experts
    if experts.moe_router_score_function == "sigmoid":
        return "glm4_moe"
    if experts.moe_shared_expert_intermediate_size:
        return "qwen2_moe"
    return "qwen3_moe" if architecture.qk_layernorm else "mixtral"


def expert_tensors(a: GPTArchitecture, layer: int) -> Iterator[MegatronTensor]:
    """Every tensor of ``layer`` after its attention."""
    experts, names, h = a.experts, _FAMILIES[family_of(a)], a.hidden_size
    hf, key = f"model.layers.{layer}.{names.block}.", "decoder.layers.mlp."
    norm = f"model.layers.{layer}.post_attention_layernorm.weight"
    yield MegatronTensor.whole("decoder.layers.pre_mlp_layernorm.weight", layer, norm, h, None)
    yield MegatronTensor.whole(f"{key}router.weight", layer, f"{hf}gate.weight", experts.num_moe_experts, h)
    if experts.moe_router_enable_expert_bias:
        bias = f"{hf}gate.e_score_correction_bias"
        yield MegatronTensor.whole(ROUTER_BIAS, layer, bias, experts.num_moe_experts, None)
    f, own = experts.moe_ffn_hidden_size, f"{key}experts.experts."
    for expert in range(experts.num_moe_experts):
        name = f"{hf}experts.{expert}."
        gate_up = tuple(RowRun(f"{name}{of}.weight", 0, f) for of in (names.gate, names.up))
        yield MegatronTensor(f"{own}linear_fc1.weight", layer, gate_up, h, expert)
        yield MegatronTensor.whole(f"{own}linear_fc2.weight", layer, f"{name}{names.down}.weight", h, f, expert)
    if s := experts.moe_shared_expert_intermediate_size:
        name, own = f"{hf}{names.shared}.", f"{key}shared_experts."
        gate_up = tuple(RowRun(f"{name}{of}_proj.weight", 0, s) for of in ("gate", "up"))
        yield MegatronTensor(f"{own}linear_fc1.weight", layer, gate_up, h)
        yield MegatronTensor.whole(f"{own}linear_fc2.weight", layer, f"{name}down_proj.weight", h, s)
        if experts.moe_shared_expert_gate:
            yield MegatronTensor.whole(f"{own}gate_weight", layer, f"{hf}{names.shared}_gate.weight", 1, h)
