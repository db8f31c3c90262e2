"""A micro-batch on its way to the device: all of its tensors in one copy, from pinned memory, without a wait.

A micro-batch is some twenty small tensors. Copied one by one from pageable memory each would hold up the host until the
device has read it; so they are laid side by side in one pinned buffer, which the device reads while the host goes on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_ALIGNMENT = 16  # bytes; of any dtype's view into the buffer


class Parcel:
    """Tensors of the CPU that go to ``device`` together: :meth:`add` each, then :meth:`send`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._packed: dict[int, tuple[Tensor, int]] = {}  # by identity, with where it starts
        self._bytes = 0

    def add(self, tensor: Tensor) -> Tensor:
        """Takes ``tensor`` along if it has to travel; returns it."""
        if tensor.device.type != self._device.type and id(tensor) not in self._packed:
            self._packed[id(tensor)] = tensor, self._bytes
            self._bytes += -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT
        return tensor

    def send(self) -> Callable[[Tensor], Tensor]:
        """Copies what was added; the function that gives a tensor's copy, or the tensor itself if it was there.

        One copy to the device, which later work of the current stream waits for, the host does not. Copies share one
        allocation, freed with the last of them.
        """
        if not self._packed:
            return lambda tensor: tensor
        here = torch.empty(self._bytes, dtype=torch.uint8, pin_memory=True)
        for tensor, start in self._packed.values():
            _part(here, start, tensor).copy_(tensor)
        there = here.to(self._device, non_blocking=True)
        copies = {key: _part(there, start, tensor) for key, (tensor, start) in self._packed.items()}
        return lambda tensor: copies.get(id(tensor), tensor)


def _part(buffer: Tensor, start: int, like: Tensor) -> Tensor:
    size = like.numel() * like.element_size()
    return buffer[start : start + size].view(like.dtype).view(like.shape)
