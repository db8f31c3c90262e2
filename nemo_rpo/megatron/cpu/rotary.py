"""Rotary position embedding for the local layer spec: two products and two sums a head, forward and backward.

Megatron-Core's own, where Transformer Engine's kernel is absent, takes cosines and sines anew for query and key, and a
dozen passes over each.

Shapes: s positions, b rows, n heads, d head size, r ≤ d rotated dimensions of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from megatron.core.transformer.attention import SelfAttention
from torch import Tensor
from torch.autograd.function import FunctionCtx


class RotarySelfAttention(SelfAttention):
    """Megatron's SelfAttention, which turns query and key itself. Its angles are those of a layer without interleaving:
    ``[s, 1, 1, r]``, of which the second half repeats the first.
    """

    def forward(self, *args: Any, rotary_pos_emb: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Megatron's, with the rotation applied in :meth:`get_query_key_value_tensors`."""
        self._turn = Turn.by(rotary_pos_emb, self.config.kv_channels)
        try:
            return super().forward(*args, rotary_pos_emb=None, **kwargs)
        finally:
            del self._turn

    def get_query_key_value_tensors(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, the first two rotated."""
        query, key, value = super().get_query_key_value_tensors(*args, **kwargs)
        return rotate(query, self._turn), rotate(key, self._turn), value


class Turn(NamedTuple):
    """A rotation of heads: what a head is multiplied by, and what it is with its halves exchanged.

    Whole heads at a time, since passes over their halves are loops over a few numbers each.

    Attributes:
        straight, across: ``[s, 1, 1, d]``; 1 and 0 for the dimensions that are not rotated.
        half: r/2. Of the first r dimensions, i and i + r/2 are turned together.
    """

    straight: Tensor
    across: Tensor
    half: int

    @classmethod
    def by(cls, angles: Tensor, head: int) -> Turn:
        """By ``angles [s, 1, 1, r]``, whose second half repeats the first, of heads of size ``head``."""
        half, still = angles.shape[-1] // 2, (0, head - angles.shape[-1])
        sin = angles[..., :half].sin()
        return cls(F.pad(angles.cos(), still, value=1.0), F.pad(torch.cat((-sin, sin), -1), still), half)

    def back(self) -> Turn:
        """The inverse rotation: the backward of :meth:`of`."""
        return self._replace(across=-self.across)

    def of(self, x: Tensor) -> Tensor:
        """``x`` rotated, ``[..., d]``."""
        a, b, rest = x.split((self.half, self.half, x.shape[-1] - 2 * self.half), -1)
        straight, across = self.straight.to(x.dtype), self.across.to(x.dtype)
        return torch.cat((b, a, rest), -1).mul_(across).addcmul_(x, straight)


def rotate(x: Tensor, turn: Turn) -> Tensor:
    """``x [s, b, n, d]``, turned. Differentiable in ``x``. Issues no collective."""
    return _Rotate.apply(x, turn)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, turn: Turn) -> Tensor:
        ctx.turn = turn
        return turn.of(x)

    @staticmethod
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Any, ...]:
        return ctx.turn.back().of(upstream), None
