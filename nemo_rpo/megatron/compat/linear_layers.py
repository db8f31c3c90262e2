"""What Megatron's and Transformer Engine's linear layers are given and give back, for an adapter beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nemo_rpo.megatron.compat.places import reaches
from nemo_rpo.megatron.compat.transformer_engine import grouped_weights, normalises


def is_column_parallel(layer: torch.nn.Module) -> bool | None:
    """Whether a layer is column- or row-parallel, by the name of its class or of one that it extends; None: neither."""
    names = [kind.__name__ for kind in type(layer).__mro__]
    if any(name.endswith(("ColumnParallelLinear", "ColumnParallelGroupedLinear")) for name in names):
        return True
    return False if any(name.endswith(("RowParallelLinear", "RowParallelGroupedLinear")) for name in names) else None


def weights_of(layer: torch.nn.Module) -> list[Tensor]:
    """The layer's matrix, or those of a grouped layer, one an expert; empty where it keeps them in another way."""
    return grouped_weights(layer) if is_grouped(layer) else [layer.weight]


def is_grouped(layer: torch.nn.Module) -> bool:
    """Whether a layer is many, one an expert, that run as one product."""
    return any(kind.__name__.endswith("GroupedLinear") for kind in type(layer).__mro__)


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
    if normalises(layer):
        made, x = made if isinstance(made, tuple) else (made, rest[-1])
    return (made if adapter is None else made + adapter(x)), bias
