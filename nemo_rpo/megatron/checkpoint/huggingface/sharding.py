"""The slices of the model's tensors that this rank holds, under their sharded keys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import Tensor

from nemo_rpo.megatron.checkpoint.huggingface.tensors import Place
from nemo_rpo.megatron.network.lora.attachment import is_trained
from nemo_rpo.megatron.network.lora.sharded import sharded_adapters

_NUMBERED = re.compile(r"decoder\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class LocalShard:
    """A block of the tensor ``key`` (of ``layer``, of one ``expert``): ``data``, in place, stands at ``offset`` in
    ``global_shape``.
    """

    key: str
    layer: int | None
    offset: tuple[int, ...]
    global_shape: tuple[int, ...]
    data: Tensor
    expert: int | None = None

    @property
    def place(self) -> Place:
        """Of which tensor it is a block, see :attr:`MegatronTensor.place`."""
        return self.key, self.layer, self.expert


def local_shards(chunks: Sequence[torch.nn.Module]) -> Iterator[LocalShard]:
    """Every parameter of the language model in ``chunks`` as one or two shards that share its memory; wrappers for
    16-bit precision and data parallelism are looked through, and adapters and a reward head are left out.

    A gated ``linear_fc1`` is two: each tensor-parallel rank stacks its gate rows on its up rows, which are not
    neighbours in the whole tensor. A tied output layer on its own pipeline stage comes under the key of the word
    embeddings. An expert's weights are a tensor of their own. Issues no collective.
    """
    for chunk in _bare(chunks):
        for name, entry in chunk.sharded_state_dict().items():
            if not is_trained(name):  # neither an adapter's nor the reward head's
                yield from _shards(entry)


def adapter_shards(chunks: Sequence[torch.nn.Module]) -> Iterator[LocalShard]:
    """Those of the adapters, in the manner of :func:`local_shards`."""
    for chunk in _bare(chunks):
        for entry in sharded_adapters(chunk).values():
            yield from _shards(entry)


def _bare(chunks: Sequence[torch.nn.Module]) -> Iterator[torch.nn.Module]:
    for chunk in chunks:
        while hasattr(chunk, "module"):
            chunk = chunk.module
        yield chunk


def _shards(entry: object) -> Iterator[LocalShard]:
    if isinstance(entry, ShardedTensorFactory):
        parts = entry.build()
        yield from (_shard(part) for part in (parts.values() if isinstance(parts, dict) else parts))
    elif isinstance(entry, ShardedTensor):
        yield _shard(entry)


def _shard(entry: ShardedTensor) -> LocalShard:
    axes = entry.prepend_axis_num
    key, numbers = entry.key, list(entry.global_offset[:axes])
    if (found := _NUMBERED.fullmatch(key)) is not None:  # layers that are not all alike
        key, numbers = f"decoder.layers.{found[2]}", [int(found[1]), *numbers]
    layer, expert = (*numbers, None, None)[:2]
    offset, shape = tuple(entry.global_offset[axes:]), tuple(entry.global_shape[axes:])
    return LocalShard(key, layer, offset, shape, entry.data.detach(), expert)
