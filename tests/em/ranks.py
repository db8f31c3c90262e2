"""Data-parallel ranks as threads of one process: collectives that mean what the real ones mean, without a launcher."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nemo_rpo.em import Collectives


class Ranks:
    """``size`` threads that meet in every collective; a rank that leaves early breaks the others after 30 s."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._barrier = threading.Barrier(size, timeout=30)
        self._parts: dict[int, Tensor] = {}

    def _exchange(self, rank: int, tensor: Tensor) -> list[Tensor]:
        self._parts[rank] = tensor.clone()
        self._barrier.wait()
        parts = [self._parts[other] for other in range(self.size)]
        self._barrier.wait()
        return parts

    def collectives(self, rank: int) -> Collectives:
        def all_reduce(tensor: Tensor) -> None:
            tensor.copy_(sum(self._exchange(rank, tensor)))

        def gather_rows(rows: Tensor) -> Tensor:
            return torch.cat(self._exchange(rank, rows))

        return Collectives(all_reduce, gather_rows)

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """``work(rank)`` on every rank; what it returned, or the exception that it raised."""
        outcomes: list[Any] = [None] * self.size

        def run_one(rank: int) -> None:
            try:
                outcomes[rank] = work(rank)
            except Exception as error:
                outcomes[rank] = error

        threads = [threading.Thread(target=run_one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return outcomes
