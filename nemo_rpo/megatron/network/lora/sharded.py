"""Adapters as sharded tensors: what checkpoints hold of them, under every layout."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory

from nemo_rpo.megatron.network.lora.adapter import ADAPTER, LowRankAdapter
from nemo_rpo.megatron.network.lora.expert_adapter import GroupedAdapters

Entry = ShardedTensor | ShardedTensorFactory


def sharded_adapters(chunk: torch.nn.Module) -> dict[str, Entry]:
    """Name in ``chunk``, a bare GPTModel -> its adapters' weights, sharing their memory. Issues no collective.

    Megatron's layers know the axes of their own weights alone and call everything else whole.
    """
    found: dict[str, Entry] = {}
    entries = chunk.sharded_state_dict()
    for name, entry in entries.items():
        path, _, weight = name.rpartition(f".{ADAPTER}.")
        if path:
            adapter = chunk.get_submodule(f"{path}.{ADAPTER}")
            found[name] = _sharded(entry, adapter, outward=weight.startswith("linear_out"))
    for path, module in chunk.named_modules():
        if isinstance(module, GroupedAdapters):
            found |= _grouped(path, module, entries)
    return found


def _grouped(path: str, group: GroupedAdapters, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Beside a grouped layer, which knows its own weights alone: under the keys of experts that run one by one."""
    found: dict[str, Entry] = {}
    for number, adapter in enumerate(group):
        beside = entries[f"{path.removesuffix(ADAPTER)}weight{number}"]
        block = next(iter(nested_values(beside.build()))) if isinstance(beside, ShardedTensorFactory) else beside
        axes = block.prepend_axis_num
        for which in ("linear_in", "linear_out"):
            outward = which == "linear_out"
            whole = ShardedTensor.from_rank_offsets(
                f"{beside.key.removesuffix('weight')}{ADAPTER}.{which}.weight",
                getattr(adapter, which).weight,
                *((axis, block.global_offset[axis], block.global_shape[axis]) for axis in range(axes)),
                replica_id=(0, adapter.number, beside.replica_id[-1]),
                prepend_axis_num=axes,
            )
            found[f"{path}.{number}.{which}.weight"] = _sharded(whole, adapter, outward)
    return found


def _sharded(entry: ShardedTensor, adapter: LowRankAdapter, outward: bool) -> Entry:
    if outward != adapter.column:  # A of a column-parallel layer, B of a row-parallel one: whole on every rank
        return entry
    axes = entry.prepend_axis_num
    layer = tuple((axis, entry.global_offset[axis], entry.global_shape[axis]) for axis in range(axes))
    cut = ShardedTensor.from_rank_offsets(
        entry.key,
        entry.data,
        *layer,
        (axes + (0 if adapter.column else 1), adapter.number, adapter.ranks),
        replica_id=(0, 0, entry.replica_id[-1]),
        prepend_axis_num=axes,
    )
    # A rank stacks its gate rows on its up rows, which are not neighbours in the whole tensor.
    return apply_swiglu_sharded_factory(cut, layer) if outward and adapter.stacks_two else cut
