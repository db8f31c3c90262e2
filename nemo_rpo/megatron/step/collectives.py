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


def broadcast_from_first_rank(tensor: Tensor) -> None:
    """Gives ``tensor`` of global rank 0 to every other rank, in place. One broadcast over the world; none with a single
    rank; not differentiable.
    """
    if dist.get_world_size() > 1:
        dist.broadcast(tensor, 0)


def gather_over_world(value: Tensor) -> list[int]:
    """``value``, one int64, of every rank in their order. One all-gather of 8 bytes a rank over the world; waits for
    the device.
    """
    values = value.new_empty(dist.get_world_size())
    dist.all_gather_into_tensor(values, value.view(1))
    return values.tolist()


def reduce_to_all_ranks(*tensors: Tensor) -> None:
    """Sums float64 ``tensors`` over all pairs of the global batch, in place, equal on every rank afterwards.

    The tensors travel as one buffer: one all-reduce over the data-parallel group (last pipeline stage only) and, with
    several stages, one broadcast over the pipeline group; 8 bytes an element each, none for no elements. Not
    differentiable.
    """
    packed = torch.cat([tensor.reshape(-1) for tensor in tensors])
    if not len(packed):
        return
    if is_last_stage():
        sum_over_data_parallel(packed)
    broadcast_from_last_stage(packed)
    for tensor, part in zip(tensors, packed.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def gather_over_data_parallel(rows: Tensor) -> Tensor:
    """Concatenates ``rows [m, c]`` of the ranks that hold different pairs, in rank order: ``[M, c]``; m may differ.

    Two all-gathers over the data-parallel group, of the lengths and of the rows padded to the longest; waits for the
    device; not differentiable.
    """
    group = parallel_state.get_data_parallel_group()
    ranks = dist.get_world_size(group)
    if ranks == 1:
        return rows
    lengths = torch.empty(ranks, dtype=torch.int64, device=rows.device)
    dist.all_gather_into_tensor(lengths, lengths.new_tensor([len(rows)]), group=group)
    longest = int(lengths.max())
    padded = torch.cat((rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])))
    gathered = rows.new_empty(ranks, *padded.shape)
    dist.all_gather_into_tensor(gathered.flatten(0, 1), padded, group=group)
    return torch.cat([part[:length] for part, length in zip(gathered, lengths.tolist(), strict=True)])


def gather_step_rows(rows: Tensor, pairs: int) -> Tensor:
    """Brings the ``rows [pairs/D, c]`` that each of D data-parallel ranks of the last pipeline stage has collected in a
    step to every rank: ``[pairs, c]``, ``pairs`` being the global batch. Rows beyond those, of pairs that only fill up
    a pipeline, are left behind.

    One all-gather over the data-parallel group (last stage only) and, with several stages, one broadcast over the
    pipeline group: 12 bytes a pair for the rows of the margin buffer. No wait for the device; not differentiable.
    """
    gathered = rows.new_empty(pairs, *rows.shape[1:])
    if is_last_stage():
        group = parallel_state.get_data_parallel_group()
        own = rows[: pairs // dist.get_world_size(group)].contiguous()
        dist.all_gather_into_tensor(gathered, own, group=group)
    broadcast_from_last_stage(gathered)
    return gathered


def largest_on_all_ranks(value: Tensor) -> float:
    """Maximum of a one-element tensor over all ranks (-inf where a rank has no value).

    One all-reduce over the world; waits for the device.
    """
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value.item()
