"""The router of a mixture of experts where Transformer Engine is absent, and where its experts are."""

from __future__ import annotations

from nemo_rpo.megatron.compat.places import reaches

_MOE = "megatron.core.transformer.moe.moe_utils"


@reaches(
    f"{_MOE}:RouterGatingLinearFunction.forward[te_general_gemm]",
    f"{_MOE}:RouterGatingLinearFunction.backward[te_general_gemm]",
)
def route_without_transformer_engine() -> None:
    """Lets the router's product be torch's where Transformer Engine is not installed.

    Reason: 0.16 asks for its product by a name that is then not there, a NameError; since 0.19 the name is None.
    """
    from megatron.core.transformer.moe import moe_utils

    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None


@reaches(
    "megatron.core.transformer.moe.experts:SequentialMLP[local_experts]",
    "megatron.core.transformer.moe.experts:TEGroupedMLP[linear_fc1, linear_fc2]",
    "megatron.core.transformer.moe.moe_layer:MoELayer[experts, shared_experts]",
)
def expert_in(path: str) -> tuple[bool, int]:
    """Whether the linear layer at ``path`` of a transformer layer is of experts, and of which of this rank's, from 0.
    One of all of this rank's experts, a grouped product, is of the first.

    Reason: a layer does not know which expert it belongs to; experts that run one after the other are a numbered list,
    ``mlp.experts.local_experts.3.linear_fc1``, and grouped ones ``mlp.experts.linear_fc1``.
    """
    folders = path.split(".")[:-1]
    if "experts" not in folders:
        return False, 0
    last = folders[-1]
    return True, int(last) if last.isdigit() else 0


def in_shared_expert(path: str) -> bool:
    """Whether the linear layer at ``path`` of a transformer layer is of the expert that every token has."""
    return "shared_experts" in path.split(".")
