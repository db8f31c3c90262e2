"""The data-parallel replicas of a model, and how they share what is to be done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist


@dataclass(frozen=True)
class Replicas:
    """This rank's replica, ``rank`` of ``ranks`` that each do a share; ``group`` holds all data-parallel replicas."""

    rank: int
    ranks: int
    group: dist.ProcessGroup

    @classmethod
    def here(cls) -> Replicas:
        """Under the layout in force. Where replicas share experts they exchange tokens in every layer, and all of them
        do everything (:func:`nemo_rpo.megatron.parallel.independent_replica`).
        """
        from megatron.core import parallel_state

        from nemo_rpo.megatron import parallel

        return cls(*parallel.independent_replica(), parallel_state.get_data_parallel_group())

    def share(self, count: int) -> range:
        """What of ``count`` things this replica does."""
        return range(self.rank, count, self.ranks)

    def together(self, found: dict[int, Any]) -> dict[int, Any]:
        """What all of them have found, by the thing's number. One gather of it over the data-parallel group."""
        everyones: list = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(everyones, found, group=self.group)
        return {number: of for theirs in everyones for number, of in theirs.items()}
