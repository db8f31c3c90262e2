"""Weights that wait in host memory and trade places with the model's for the length of a block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import zip_longest

import torch
from torch import Tensor


class WeightSwap:
    """Keeps the values that ``parameters`` have now, and puts them back when asked.

    On a GPU both copies in host memory (these values, and the others while these are in) are pinned, made once, and
    travel on two streams of their own: the bus carries what leaves and what comes at the same time. The host waits for
    none of it; what is computed afterwards waits for all. Host memory: two copies of the parameters, one of them on a
    CPU only inside the block.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = list(parameters)
        self._pinned = any(parameter.device.type != "cpu" for parameter in self._parameters)
        self._outward, self._inward = torch.cuda.Stream(), torch.cuda.Stream()  # on a CPU stand-ins, see cpu.install
        self._kept, self._others = self._host_buffers(), []
        self._copy((), away=self._kept)

    def put_back(self) -> None:
        """Writes the kept values into the parameters, to stay there. No collective."""
        self._copy(self._kept)

    def _host_buffers(self) -> list[Tensor]:
        return [torch.empty_like(each, device="cpu", pin_memory=self._pinned) for each in self._parameters]

    @contextlib.contextmanager
    def kept_values(self) -> Iterator[None]:
        """Inside, the parameters hold the values that were kept. No collective."""
        self._others = self._others or self._host_buffers()
        self._copy(self._kept, away=self._others)
        try:
            yield
        finally:
            self._copy(self._others)
            if not self._pinned:
                self._others = []

    @torch.no_grad()
    def _copy(self, values: Sequence[Tensor], away: Sequence[Tensor] = ()) -> None:
        """Copies what the parameters hold ``away``, and ``values`` into them; of one parameter in this order."""
        current = torch.cuda.current_stream()
        self._outward.wait_stream(current)
        self._inward.wait_stream(current)
        for parameter, here, value in zip_longest(self._parameters, away, values):
            if here is not None:
                with torch.cuda.stream(self._outward):
                    here.copy_(parameter, non_blocking=True)
                self._inward.wait_event(self._outward.record_event())
            if value is not None:
                with torch.cuda.stream(self._inward):
                    parameter.copy_(value, non_blocking=True)
        current.wait_stream(self._inward)


@contextlib.contextmanager
def overwritten(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Inside the block the parameters may be written to; afterwards they hold what they held before. No collective.

    Host memory: one copy of the parameters inside the block.
    """
    swap = WeightSwap(parameters)
    try:
        yield
    finally:
        swap.put_back()
