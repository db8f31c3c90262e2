"""What Megatron's and Transformer Engine's linear layers are given and give back, for an adapter beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nemo_rpo.megatron.compat.places import reaches

_TE = "megatron.core.extensions.transformer_engine"


def is_column_parallel(layer: torch.nn.Module) -> bool | None:
    """Whether a layer is column- or row-parallel, by the name of its class or of one that it extends; None: neither."""
    names = [kind.__name__ for kind in type(layer).__mro__]
    if any(name.endswith("ColumnParallelLinear") for name in names):
        return True
    return False if any(name.endswith("RowParallelLinear") for name in names) else None


def _normalises(layer: torch.nn.Module) -> bool:
    return hasattr(layer, "return_layernorm_output")


@reaches("transformer_engine.pytorch:LayerNormLinear[return_layernorm_output, return_layernorm_output_gathered]")
def hand_out_normed_input(layer: torch.nn.Module) -> None:
    """Has a layer that normalises its input itself return the normed input too, this rank's positions of it.

    Reason: an adapter reads what the layer's matrix reads, and Transformer Engine's fused layer keeps that to itself
    unless asked by a constructor's argument that Megatron does not pass.
    """
    if _normalises(layer):
        layer.return_layernorm_output, layer.return_layernorm_output_gathered = True, False


@reaches(
    "megatron.core.tensor_parallel:ColumnParallelLinear.forward(input_)",
    "megatron.core.tensor_parallel:RowParallelLinear.forward(input_)",
)
def adapted_output(layer: torch.nn.Module, x: Tensor, output: Any, adapter: Callable[[Tensor], Tensor] | None) -> Any:
    """The layer's (output, bias), with what ``adapter`` makes of its input added.

    Reason: these layers return pairs, and Transformer Engine's the normed input of :func:`hand_out_normed_input` with
    them: ``((output, normed), None)`` or ``(output, bias, normed)``.
    """
    made, *rest = output
    bias = rest[0] if rest else None
    if _normalises(layer):
        made, x = made if isinstance(made, tuple) else (made, rest[-1])
    return (made if adapter is None else made + adapter(x)), bias
