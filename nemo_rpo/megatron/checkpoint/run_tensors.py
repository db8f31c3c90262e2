"""EM state and random state of a run as sharded tensors.

Shapes: n pairs, K annotators, D data-parallel ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from torch import Tensor

from nemo_rpo.em import AnnotatorReliability, MarginBuffer, RecordedReliability
from nemo_rpo.errors import CheckpointError
from nemo_rpo.megatron.checkpoint.index import Index

_EM, _PAIRS, _RANDOM = "em.", "em.pairs.", "random."

Tensors = dict[str, ShardedTensor]


def sharded(
    key: str, data: Tensor, shape: tuple[int, ...], offset: tuple[int, ...], replica: int | tuple[int, ...]
) -> ShardedTensor:
    """``data`` as the part at ``offset`` of the global tensor ``key`` of ``shape``; parts may be of any size.

    ``replica``: 0, or all 0, on the one rank whose copy of this part counts.
    """
    return ShardedTensor(
        key, data, data.dtype, tuple(data.shape), shape, offset, axis_fragmentations=None, replica_id=replica
    )


def layout() -> dict[str, int]:
    """Sizes of the groups that random states belong to; of expert groups where there are some."""
    experts = {
        "expert_model_parallel_size": parallel_state.get_expert_model_parallel_world_size(),
        "expert_tensor_parallel_size": parallel_state.get_expert_tensor_parallel_world_size(),
    }
    return (experts if experts["expert_model_parallel_size"] > 1 else {}) | {
        "tensor_model_parallel_size": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline_model_parallel_size": parallel_state.get_pipeline_model_parallel_world_size(),
        "data_parallel_size": parallel_state.get_data_parallel_world_size(),
    }


def random_state() -> Tensors:
    """This rank's random states as uint8 tensors, one cell of a (pipeline, tensor, data) grid per rank.

    They can only be read back under the same grid. Context-parallel ranks share one cell: they draw the same numbers.
    """
    sizes = layout()
    grid = tuple(sizes[f"{name}_parallel_size"] for name in ("pipeline_model", "tensor_model", "data"))
    cell = (
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_data_parallel_rank(),
    )
    states = {"cpu": torch.get_rng_state(), "device": torch.cuda.get_rng_state()}
    states |= {f"tracker.{name}": of for name, of in tensor_parallel.get_cuda_rng_tracker().get_states().items()}
    found = {}
    for name, state in states.items():
        data = state.cpu().view(1, 1, 1, -1)
        shape, offset = (*grid, data.shape[-1]), (*cell, 0)
        found[f"{_RANDOM}{name}"] = sharded(
            f"{_RANDOM}{name}", data, shape, offset, parallel_state.get_context_parallel_rank()
        )
    return found


def restore_random_state(loaded: Tensors) -> None:
    """Sets the random states from :func:`random_state` after its tensors were read from a checkpoint."""
    found = {key.removeprefix(_RANDOM): tensor.data.view(-1) for key, tensor in loaded.items()}
    torch.set_rng_state(found.pop("cpu"))
    torch.cuda.set_rng_state(found.pop("device"))
    tracker = {name.removeprefix("tracker."): state for name, state in found.items()}
    tensor_parallel.get_cuda_rng_tracker().set_states(tracker)


def em_state(em: AnnotatorReliability | RecordedReliability) -> Tensors:
    """The EM's state: [K] tensors that every rank has, and this rank's block of the pairs, sharing the buffers' memory.

    A rank's block has 4n/D bytes for the margin buffer and 12n/D for the record.
    """
    return {**_shared(em.shared_state()), **_blocks(em.blocks())}


def _shared(state: Mapping[str, Tensor]) -> Tensors:
    keyed = ((f"{_EM}{name}", values) for name, values in state.items())
    return {key: sharded(key, of, tuple(of.shape), (0,) * of.ndim, dist.get_rank()) for key, of in keyed}


def _blocks(blocks: Mapping[str, MarginBuffer]) -> Tensors:
    copy = (
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_context_parallel_rank(),
    )
    keyed = ((f"{_PAIRS}{name}", buffer) for name, buffer in blocks.items() if len(buffer.margins))
    return {key: sharded(key, of.margins, (of.num_pairs,), (of.offset,), copy) for key, of in keyed}


def load_em_state(
    em: AnnotatorReliability | RecordedReliability, index: Index, read: Callable[[Tensors], object]
) -> None:
    """Restores :func:`em_state` under any D. New annotators keep their initial values.

    A record that is missing from the checkpoint, or covers another number of pairs, is skipped; margins of an estimator
    are not.

    ``read`` fills tensors from the checkpoint. It is collective and called twice on every rank.

    Raises:
        CheckpointError: the estimator's margins are missing or cover another number of pairs.
    """
    names = [key for key in index if key.startswith(_EM) and not key.startswith(_PAIRS)]
    saved = {key.removeprefix(_EM): torch.empty(index[key].shape, dtype=index[key].dtype) for key in names}
    read(_shared(saved))
    em.load_shared_state(_with_newcomers(saved, em.shared_state()))
    optional = em.pairs.blocks() if isinstance(em, RecordedReliability) else {}
    wanted = {}
    for name, buffer in em.blocks().items():
        found = index.get(f"{_PAIRS}{name}")
        if found is not None and found.shape == (buffer.num_pairs,):
            wanted[name] = buffer
        elif name not in optional:
            pairs = found.shape[0] if found else 0
            raise CheckpointError(f"the checkpoint has {name} of {pairs} pairs, the data {buffer.num_pairs}")
    read(_blocks(wanted))


def _with_newcomers(saved: dict[str, Tensor], fresh: dict[str, Tensor]) -> dict[str, Tensor]:
    """The saved state, extended by the initial values of annotators that it does not know."""
    known = saved["eta"].numel()
    of_annotators = {"eta", "label_counts", "right_sums", "taste_log_odds"} & fresh.keys()
    joined = {name: torch.cat((saved[name], fresh[name][known:].cpu())) for name in of_annotators}
    return {**saved, **joined}
