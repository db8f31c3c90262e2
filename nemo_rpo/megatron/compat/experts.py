"""The router of a mixture of experts where Transformer Engine is absent."""

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
