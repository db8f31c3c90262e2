"""The step's statistics on their way to every rank: one all-reduce, one broadcast.

Who holds what: data-parallel ranks hold different pairs (summed); tensor- and context-parallel ranks hold copies of the
same pairs (never summed); of the pipeline stages only the last has seen a loss (broadcast from it).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from nemo_rpo.megatron.parallel import is_last_stage


def sum_over_data_parallel(tensor: Tensor) -> None:
    """Sums ``tensor`` in place over the ranks that hold different pairs.

    One all-reduce over the data-parallel group; not differentiable.
    """
    dist.all_reduce(tensor, group=parallel_state.get_data_parallel_group())


def broadcast_from_last_stage(tensor: Tensor) -> None:
    """Gives ``tensor`` of the last pipeline stage to the earlier ones, in place.

    One broadcast over the pipeline group; none with a single stage; not differentiable.
    """
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        dist.broadcast(
            tensor,
            parallel_state.get_pipeline_model_parallel_last_rank(),
            group=parallel_state.get_pipeline_model_parallel_group(),
        )


def reduce_to_all_ranks(*tensors: Tensor) -> None:
    """Sums float64 ``tensors`` over all pairs of the global batch, in place, equal on every rank afterwards.

    The tensors travel as one buffer: one all-reduce over the data-parallel group (last pipeline stage only) and, with
    several stages, one broadcast over the pipeline group; 8 bytes an element each. Not differentiable.
    """
    packed = torch.cat([tensor.reshape(-1) for tensor in tensors])
    if is_last_stage():
        sum_over_data_parallel(packed)
    broadcast_from_last_stage(packed)
    for tensor, part in zip(tensors, packed.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def largest_on_all_ranks(value: Tensor) -> float:
    """The largest ``value`` (one element, fp32 or wider;

    -inf where a rank has none) over all ranks. One all-reduce over the world; waits for the device.
    """
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value.item()
