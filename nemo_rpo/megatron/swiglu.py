"""SwiGLU for the local layer spec on a CPU: ``silu(gate) · up``, whose backward needs its input alone.

Written out in torch's operations, as Megatron-Core does without its fused kernel, autograd keeps ``silu(gate)`` and a
copy of ``up`` beside the input: half as much again of the largest activation of a layer.

Shapes: f features of the hidden layer on this tensor-parallel rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from torch.autograd.function import FunctionCtx


class SwiGLU(MegatronModule):
    """The ``activation_func`` of an MLP: ``[…, 2f]``, gate and up side by side, -> ``[…, f]``. Issues no collective."""

    def forward(self, gate_and_up: Tensor) -> Tensor:
        return _SwiGLU.apply(gate_and_up)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, gate_and_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_and_up)
        gate, up = gate_and_up.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Any, ...]:
        (gate_and_up,) = ctx.saved_tensors
        gate, up = gate_and_up.chunk(2, -1)
        gradient = torch.empty_like(gate_and_up)
        of_gate, of_up = gradient.chunk(2, -1)
        torch.mul(F.silu(gate), upstream, out=of_up)
        torch.ops.aten.silu_backward.grad_input(upstream * up, gate, grad_input=of_gate)
        return (gradient,)
