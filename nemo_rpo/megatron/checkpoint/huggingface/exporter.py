"""The parameters of Megatron's GPTModel, spread over tensor and pipeline ranks → a Hugging Face folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.errors import CheckpointError, ConfigError, RPOError
from nemo_rpo.megatron.checkpoint.huggingface.config import exported_config
from nemo_rpo.megatron.checkpoint.huggingface.mapping import MegatronTensor, hf_shapes, megatron_tensors
from nemo_rpo.megatron.checkpoint.huggingface.reward_head_file import REWARD_HEAD_FILE
from nemo_rpo.megatron.checkpoint.huggingface.sharding import LocalShard, local_shards
from nemo_rpo.megatron.checkpoint.huggingface.tensors import ROUTER_BIAS, Place
from nemo_rpo.megatron.checkpoint.huggingface.writer import HuggingFaceFolderWriter
from nemo_rpo.megatron.network.reward_head import head_of

T = TypeVar("T")
_Offset = tuple[int, ...]


@dataclass(frozen=True)
class _RemoteShard:
    """A shard as the other ranks know it; ``rank`` is global."""

    rank: int
    shape: tuple[int, ...]
    global_shape: tuple[int, ...]
    dtype: torch.dtype


_Inventory = dict[Place, dict[_Offset, _RemoteShard]]


def export_group() -> dist.ProcessGroup:
    """The smallest group of Megatron's around this rank that holds the whole model: tensor × pipeline ranks; with more
    expert than tensor ranks, expert-tensor × expert × pipeline ranks, of which the former are a part.
    """
    experts = parallel_state.get_expert_tensor_model_pipeline_parallel_group()
    dense = parallel_state.get_model_parallel_group()
    return experts if experts.size() > dense.size() else dense


class FirstRank:
    """The rank of the exporting group that writes, and what went wrong there.

    Its peers wait for it in collectives, so a full disk must not raise in their midst: later steps are left out, and
    :meth:`agree` raises on every rank of the group.
    """

    def __init__(self) -> None:
        self.group = export_group()
        self.rank = dist.get_process_group_ranks(self.group)[0]
        self.here = dist.get_rank() == self.rank
        self._failure: str | None = None

    def run(self, step: Callable[..., T], *args: Any) -> T | None:
        """``step(*args)``, only on the first rank and only while nothing has failed."""
        if self.here and self._failure is None:
            try:
                return step(*args)
            except RPOError as exc:
                self._failure = str(exc)
        return None

    def agree(self) -> None:
        """Raises :class:`CheckpointError` on every rank if a step failed. Broadcasts one short object in the group."""
        message = [self._failure]
        dist.broadcast_object_list(message, src=self.rank, group=self.group)
        if message[0] is not None:
            raise CheckpointError(message[0])


def export_hf(
    chunks: Sequence[torch.nn.Module],
    architecture: GPTArchitecture,
    folder: str | Path,
    tokenizer_folder: str | Path | None = None,
    source_config: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
    generation_config: str | Path | None = None,
) -> None:
    """Writes the model as the Hugging Face folder ``folder``, which must be new or empty.

    It holds safetensors in ``dtype`` (None: the parameters' own), with an index where there are several files of at
    most ``max_shard_size``; ``config.json`` (every key of ``source_config`` kept, or one made from ``architecture``);
    the tokenizer files of ``tokenizer_folder``; and ``generation_config``, where it is a file. Rows that pad the
    vocabulary are left out. A reward head is in ``reward_head.safetensors`` beside them: ``<output>.weight``
    ``[width, hidden size]``.

    Collective over the :func:`export_group` of global rank 0; the other ranks, whose weights are copies, return at
    once, so synchronise before they read the folder. It gathers one inventory, then broadcasts each shard
    once inside that group: the model's bytes in all. Not differentiable. Each rank holds one shard of others beside its
    parameters; the group's first rank, which writes, one whole tensor and one output file on the host.

    Raises :class:`CheckpointError` on every rank of the group if the folder cannot be written, and :class:`ConfigError`
    if ``chunks``, ``architecture`` and ``source_config`` do not belong together.
    """
    tensors = megatron_tensors(architecture)

    def started(stored: torch.dtype) -> tuple[Callable[[], HuggingFaceFolderWriter], Mapping[str, Any]]:
        config = exported_config(architecture, source_config, stored)
        files = (folder, hf_shapes(tensors), stored, max_shard_size, tokenizer_folder, generation_config)
        return partial(HuggingFaceFolderWriter, *files), config

    export_tensors(chunks, tensors, started, dtype, add_reward_head)


class TensorWriter(Protocol):
    """Takes whole tensors one by one, then the description of the model. Raises :class:`RPOError` if it cannot."""

    def add(self, name: str, tensor: Tensor) -> None:
        """Takes ``tensor``, on the CPU."""

    def finish(self, config: Mapping[str, Any]) -> None:
        """All tensors are there."""


Writer = TypeVar("Writer", bound=TensorWriter)


@torch.no_grad()
def export_tensors(
    chunks: Sequence[torch.nn.Module],
    tensors: Sequence[MegatronTensor],
    start: Callable[[torch.dtype], tuple[Callable[[], Writer], Mapping[str, Any]]],
    dtype: torch.dtype | None,
    add_beside: Callable[[Sequence[torch.nn.Module], torch.dtype, FirstRank, Writer | None], None] | None = None,
    shards_here: Callable[[], Iterable[LocalShard]] | None = None,
) -> None:
    """Hands the model's ``tensors``, whole, under the names of their runs, to a writer on the group's first rank.

    Args:
        start: from the dtype of the weights what makes the writer, and the description that it finishes with; called
            on every rank of the group, which all raise what it raises.
        dtype: of the weights that are written; None: the parameters' own.
        add_beside: collective over the group as well; what else the writer, None on other ranks, is to take.
        shards_here: this rank's parts of ``tensors``; None: those of the language model.

    Collectives and errors: :func:`export_hf`.
    """
    first = FirstRank()
    if first.rank != 0:
        return
    shards = list(local_shards(chunks) if shards_here is None else shards_here())
    inventory = _inventory(shards, first.group)
    _check_complete(tensors, inventory)
    dtype = dtype or shards[0].data.dtype
    make_writer, config = start(dtype)

    writer = first.run(make_writer)
    first.agree()
    mine = {(shard.place, shard.offset): shard.data for shard in shards}
    for tensor in tensors:
        for name, data in _gather(tensor, inventory, mine, dtype, first).items():
            first.run(writer.add, name, data)
    if add_beside is not None:
        add_beside(chunks, dtype, first, writer)
    first.run(lambda: writer.finish(config))
    first.agree()


def add_reward_head(chunks: Sequence[torch.nn.Module], dtype: torch.dtype, first: FirstRank, writer: Any) -> None:
    """Hands the weights of a reward head to a ``writer`` that has ``add_file``. Gathers them over the group."""
    head = _reward_head(chunks, dtype, first.group)
    if head:
        first.run(lambda: writer.add_file(REWARD_HEAD_FILE, head))


def _reward_head(chunks: Sequence[torch.nn.Module], dtype: torch.dtype, group: dist.ProcessGroup) -> dict[str, Tensor]:
    """The weights of the last stage's reward head, a few rows, on every rank; empty without one."""
    head = head_of(list(chunks))
    mine = {} if head is None else {name: weight.to("cpu", dtype) for name, weight in head.state_dict().items()}
    everyones: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyones, mine, group=group)
    return next((theirs for theirs in everyones if theirs), {})


def _inventory(shards: Sequence[LocalShard], group: dist.ProcessGroup) -> _Inventory:
    """Who holds what, the same on every rank; of a shard that several ranks hold, the first one's copy counts."""
    rank = dist.get_rank()
    mine = [(s.place, s.offset, _RemoteShard(rank, tuple(s.data.shape), s.global_shape, s.data.dtype)) for s in shards]
    everyones: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyones, mine, group=group)
    inventory: _Inventory = {}
    for theirs in everyones:
        for place, offset, shard in theirs:
            inventory.setdefault(place, {}).setdefault(offset, shard)
    return inventory


def _check_complete(tensors: Sequence[MegatronTensor], inventory: _Inventory) -> None:
    for tensor in tensors:
        held = list(inventory.get(tensor.place, {}).values())
        if not held or sum(math.prod(shard.shape) for shard in held) != math.prod(held[0].global_shape):
            raise ConfigError(
                f"the model has no whole {tensor.key} (layer {tensor.layer}), but its architecture needs one"
            )
        tensor.check_shape(held[0].global_shape)
    for key, layer, _ in inventory.keys() - {tensor.place for tensor in tensors}:
        raise ConfigError(f"the model's {key} (layer {layer}) has no counterpart in the exported architecture")


def _gather(
    tensor: MegatronTensor,
    inventory: _Inventory,
    mine: Mapping[tuple[Place, _Offset], Tensor],
    dtype: torch.dtype,
    first: FirstRank,
) -> dict[str, Tensor]:
    """The Hugging Face tensors that ``tensor`` is made of, whole, on the first rank's host; nothing elsewhere."""
    dtype = torch.float32 if tensor.key == ROUTER_BIAS else dtype
    shapes = hf_shapes([tensor]) if first.here else {}
    whole = {name: torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}
    device = next(iter(mine.values())).device
    for offset, shard in inventory[tensor.place].items():
        if shard.rank == dist.get_rank():
            data = mine[(tensor.place, offset)].contiguous()
        else:
            data = torch.empty(shard.shape, dtype=shard.dtype, device=device)
        dist.broadcast(data, src=shard.rank, group=first.group)
        if not first.here:
            continue
        data = data.cpu()
        columns = tuple(slice(start, start + size) for start, size in zip(offset[1:], shard.shape[1:], strict=True))
        for name, theirs, ours in tensor.overlaps(offset[0], shard.shape[0]):
            whole[name][(theirs, *columns)].copy_(data[ours])
    return whole
