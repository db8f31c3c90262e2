"""The data-parallel replicas of a model, and how they share what is to be done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from nemo_rpo.config.schema import RunConfig


@dataclass(frozen=True)
class Replicas:
    """This rank's replica, ``rank`` of ``ranks``; ``group`` connects them, None where each does everything."""

    rank: int
    ranks: int
    group: dist.ProcessGroup | None

    @classmethod
    def of(cls, cfg: RunConfig) -> Replicas:
        """Each has a share; under expert parallelism, where they exchange tokens in every layer, all do the same."""
        from megatron.core import parallel_state

        if cfg.model.expert_model_parallel_size > 1:
            return cls(0, 1, None)
        group = parallel_state.get_data_parallel_group()
        return cls(dist.get_rank(group), dist.get_world_size(group), group)

    def share(self, count: int) -> range:
        """What of ``count`` things this replica does."""
        return range(self.rank, count, self.ranks)

    def together(self, found: dict[int, Any]) -> dict[int, Any]:
        """What all of them have found, by the thing's number. One gather of it over the data-parallel group."""
        everyones: list = [found] * self.ranks
        if self.group is not None:
            dist.all_gather_object(everyones, found, group=self.group)
        return {number: of for theirs in everyones for number, of in theirs.items()}
