"""SwiGLU for the local layer spec on a CPU: ``silu(gate) · up``, whose backward needs its input alone.

Written out in torch's operations, as Megatron-Core does without its fused kernel, autograd keeps ``silu(gate)`` and a
copy of ``up`` beside the input: half as much again of the largest activation of a layer.

Shapes: f features of the hidden layer on this tensor-parallel rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from torch.autograd.function import FunctionCtx

_ROWS = 256  # at a time, so that what a pass leaves is still in the cache when the next one reads it


class SwiGLU(MegatronModule):
    """The ``activation_func`` of an MLP: ``[…, 2f]``, gate and up side by side, -> ``[…, f]``. Issues no collective."""

    def forward(self, gate_and_up: Tensor) -> Tensor:
        """``[..., 2f]`` → ``[..., f]``."""
        return _SwiGLU.apply(gate_and_up)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, gate_and_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_and_up)
        product = gate_and_up.new_empty(*gate_and_up.shape[:-1], gate_and_up.shape[-1] // 2)
        for (gate, up), out in zip(_halves(gate_and_up), _rows(product), strict=True):
            torch.mul(F.silu(gate), up, out=out)
        return product

    @staticmethod
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Any, ...]:
        (gate_and_up,) = ctx.saved_tensors
        gradient = gate_and_up.new_empty(gate_and_up.shape)
        for (gate, up), above, (of_gate, of_up) in zip(
            _halves(gate_and_up), _rows(upstream), _halves(gradient), strict=True
        ):
            torch.mul(F.silu(gate), above, out=of_up)
            torch.ops.aten.silu_backward.grad_input(above * up, gate, grad_input=of_gate)
        return (gradient,)


def _rows(x: Tensor) -> Sequence[Tensor]:
    return x.flatten(0, -2).split(_ROWS)


def _halves(x: Tensor) -> Iterator[Sequence[Tensor]]:
    return (rows.chunk(2, -1) for rows in _rows(x))
