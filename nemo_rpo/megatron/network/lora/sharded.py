"""Adapters as sharded tensors: what checkpoints hold of them, under every layout."""

from __future__ import annotations

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory

from nemo_rpo.megatron.network.lora.adapter import ADAPTER, LowRankAdapter

Entry = ShardedTensor | ShardedTensorFactory


def sharded_adapters(chunk: torch.nn.Module) -> dict[str, Entry]:
    """Name in ``chunk``, a bare GPTModel -> its adapters' weights, sharing their memory. Issues no collective.

    Megatron's layers know the axes of their own weights alone and call everything else whole.
    """
    found: dict[str, Entry] = {}
    for name, entry in chunk.sharded_state_dict().items():
        path, _, weight = name.rpartition(f".{ADAPTER}.")
        if path:
            adapter = chunk.get_submodule(f"{path}.{ADAPTER}")
            found[name] = _sharded(entry, adapter, outward=weight.startswith("linear_out"))
    return found


def _sharded(entry: ShardedTensor, adapter: LowRankAdapter, outward: bool) -> Entry:
    if outward != adapter.column:  # A of a column-parallel layer, B of a row-parallel one: whole on every rank
        return entry
    axes = entry.prepend_axis_num
    layer = tuple((axis, entry.global_offset[axis], entry.global_shape[axis]) for axis in range(axes))
    rank = parallel_state.get_tensor_model_parallel_rank()
    cut = ShardedTensor.from_rank_offsets(
        entry.key,
        entry.data,
        *layer,
        (axes + (0 if adapter.column else 1), rank, adapter.ranks),
        replica_id=(0, 0, entry.replica_id[-1]),
        prepend_axis_num=axes,
    )
    # A rank stacks its gate rows on its up rows, which are not neighbours in the whole tensor.
    return apply_swiglu_sharded_factory(cut, layer) if outward and adapter.stacks_two else cut
