"""Context parallelism: the positions of a sequence spread over ranks.

A row of S positions is cut into 2·C chunks for C context-parallel ranks; rank r has chunks r and 2C−1−r, so that under
a causal mask every rank attends to equally much. Megatron-Core's rotary embedding and Transformer Engine's ring
attention count on this order; here it stands once. Packs are cut by :meth:`Segments.runs`.

What of a response lies on a rank is scored there, and its sum is made over the ranks. All of them then hold the same
pairs: what is computed from sums (loss, posterior, evidence) is computed on each and never summed again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import (
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from torch import Tensor


def context_group() -> dist.ProcessGroup | None:
    """The ranks that share this rank's sequences; None where it has them whole."""
    group = parallel_state.get_context_parallel_group(check_initialized=False)
    return None if group is None or group.size() == 1 else group


def positions_of(rank: int, ranks: int, length: int) -> Tensor:
    """The positions of a row of ``length`` that a context rank has, in order, int64 ``[length / ranks]``.

    >>> positions_of(0, 2, 8).tolist(), positions_of(1, 2, 8).tolist()
    ([0, 1, 6, 7], [2, 3, 4, 5])
    """
    chunks = torch.arange(length).view(2 * ranks, -1)
    return torch.cat((chunks[rank], chunks[2 * ranks - 1 - rank]))


def sum_over_context(part: Tensor) -> Tensor:
    """The sum of ``part`` over the context ranks, equal on each; ``part`` itself where there is one.

    One all-reduce forward, none backward: every rank computes the loss of the whole sum, so the gradient of its part
    is that of the sum. Gradients of weights are then shares, which Megatron adds up over data- and context-parallel
    ranks.
    """
    group = context_group()
    # Megatron reduces in place, and what made the part may need it for its backward.
    return part if group is None else reduce_from_tensor_model_parallel_region(part.clone(), group=group)


def gather_over_context(part: Tensor, group: dist.ProcessGroup, places: Sequence[Tensor]) -> Tensor:
    """``[S/C, …]`` of each rank as ``[S, …]`` in the order of positions; ``places``: those of each rank, int64
    ``[S/C]``.

    One all-gather forward and one reduce-scatter of the gradient backward, each of the whole ``[S, …]``.
    """
    gathered = gather_from_sequence_parallel_region(part, group=group)
    return gathered.index_select(0, torch.cat(list(places)).argsort().to(part.device))
