"""Rotary position embedding for the local layer spec: two products and two sums a head, forward and backward.

Megatron-Core's own, where Transformer Engine's kernel is absent, takes cosines and sines anew for query and key, and a
dozen passes over each.

Shapes: s positions, b rows, n heads, d head size, r ≤ d rotated dimensions of it.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.attention import SelfAttention
from torch import Tensor
from torch.autograd.function import FunctionCtx


class RotarySelfAttention(SelfAttention):
    """Megatron's SelfAttention, which turns query and key itself. Its angles are those of a layer without interleaving:
    ``[s, 1, 1, r]``, of which the second half repeats the first.
    """

    def forward(self, *args: Any, rotary_pos_emb: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        half = rotary_pos_emb[..., : rotary_pos_emb.shape[-1] // 2]
        self._cos_sin = half.cos(), half.sin()
        try:
            return super().forward(*args, rotary_pos_emb=None, **kwargs)
        finally:
            del self._cos_sin

    def get_query_key_value_tensors(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = super().get_query_key_value_tensors(*args, **kwargs)
        return rotate(query, *self._cos_sin), rotate(key, *self._cos_sin), value


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x [s, b, n, d]`` by angles whose ``cos`` and ``sin`` are ``[s, 1, 1, r/2]``: of its first r dimensions, i and
    i + r/2 are turned together.

    Differentiable in ``x``. Issues no collective.
    """
    return _Rotate.apply(x, cos, sin)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Any, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(upstream, cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin, half = cos.to(x.dtype), sin.to(x.dtype), cos.shape[-1]
    sizes = (half, half, x.shape[-1] - 2 * half)
    turned = x.new_empty(x.shape)
    (a, b, rest), (new_a, new_b, new_rest) = x.split(sizes, -1), turned.split(sizes, -1)
    torch.mul(a, cos, out=new_a).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=new_b).addcmul_(a, sin)
    new_rest.copy_(rest)
    return turned
