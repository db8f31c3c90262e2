"""Keys and values of all positions so far, layer by layer and micro-batch by micro-batch.

Shapes: s new positions, S all positions so far, L room for them, b rows, n heads and g key/value groups of this
tensor-parallel rank, d head size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Place:
    """Where the forward that runs now stands; every layer of a rank looks here.

    Attributes:
        micro_batch: its number.
        offset: positions that are in the caches.
        room: L.
    """

    micro_batch: int = 0
    offset: int = 0
    room: int = 0
    caches: list[CachedAttention] = field(default_factory=list)

    def start(self, room: int) -> None:
        """Forgets everything; there will be at most ``room`` positions."""
        self.offset, self.room = 0, room
        for cache in self.caches:
            cache.memory.clear()


class CachedAttention(torch.nn.Module):
    """Causal ``core_attention`` over the positions in its cache and the new ones, which it adds to it.

    Issues no collective: heads are split over tensor-parallel ranks. Memory: 2 L b g d numbers a micro-batch.
    """

    def __init__(self, place: Place, softmax_scale: float | None) -> None:
        super().__init__()
        self.place, self.softmax_scale = place, softmax_scale
        self.memory: dict[int, tuple[Tensor, Tensor]] = {}
        place.caches.append(self)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``query [s, b, n, d]``, ``key``/``value [s, b, g, d]`` of the new positions -> context ``[s, b, n·d]``.

        All of a prompt's positions at once into an empty cache, or one position at a time.
        """
        s, b, n, d = query.shape
        keys, values = self._with_new(key, value)
        groups = keys.shape[1]
        if s == 1:  # all heads of a group ask the same keys: they are rows of one product, and nothing is repeated
            asked = query.view(b, groups, n // groups, d)
            context = F.scaled_dot_product_attention(asked, keys, values, scale=self.softmax_scale)
            return context.reshape(1, b, n * d)
        if self.place.offset:
            raise AssertionError(f"{s} positions at once behind {self.place.offset} others")
        repeats = n // groups
        if repeats > 1:
            keys, values = keys.repeat_interleave(repeats, dim=1), values.repeat_interleave(repeats, dim=1)
        context = F.scaled_dot_product_attention(
            query.permute(1, 2, 0, 3), keys, values, is_causal=True, scale=self.softmax_scale
        )
        return context.permute(2, 0, 1, 3).reshape(s, b, n * d)

    def _with_new(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """``[b, g, S, d]`` of each, views into the cache."""
        s, b, g, d = key.shape
        place = self.place
        if place.micro_batch not in self.memory:
            self.memory[place.micro_batch] = tuple(of.new_empty(b, g, place.room, d) for of in (key, value))
        end = place.offset + s
        found = []
        for kept, new in zip(self.memory[place.micro_batch], (key, value), strict=True):
            kept[:, :, place.offset : end] = new.permute(1, 2, 0, 3)
            found.append(kept[:, :, :end])
        return tuple(found)
