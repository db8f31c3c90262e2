r"""What the optimizer keeps, saved by each rank as it lies there: no gather, no copy, and readable under any layout.

Names: a *box* is a block of a global tensor that a tensor-parallel rank and a pipeline stage hold whole: the key of the
tensor, its offset and its shape in global coordinates (a gated ``linear_fc1`` is two, its gate and its up rows). Of the
n numbers of a box, flattened, each rank of the distributed optimizer moves a range ``[start, stop)``; the plain
optimizer moves all of them on every rank.

A checkpoint has a tensor ``optimizer.<state>.<key>@<offset>+<shape>`` ``[n]`` for every box and state: ``exp_avg``,
``exp_avg_sq`` and, for weights of 16 bits, ``param`` (the fp32 weights that are stepped). Each rank writes the range it
moves, 8 bytes a number (12 for weights of 16 bits), with no padding and no word of buckets. So the number of
data-parallel ranks, the bucket sizes and the kind of optimizer may change freely. Under another tensor or pipeline
layout the boxes are cut differently: they are put together from those that they overlap, when they are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import Tensor

from nemo_rpo.errors import CheckpointError
from nemo_rpo.megatron.checkpoint.index import Index
from nemo_rpo.megatron.checkpoint.sharded import sharded
from nemo_rpo.megatron.compat.megatron_optimizer import Moved, moved_numbers, parts_of

_PREFIX, _MOMENTS = "optimizer.", ("exp_avg", "exp_avg_sq")
_ROUND_BYTES = 1 << 30  # of foreign boxes that are held at once while others are put together from them

Load = Callable[[dict[str, ShardedTensor]], dict[str, Tensor]]


class Box(NamedTuple):
    """A block of the global tensor ``key``; ``offset`` and ``shape`` count the axis of layers, where it has one."""

    key: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def name(self, state: str) -> str:
        """The checkpoint's key for a state of this box."""
        offset, shape = (",".join(map(str, numbers)) for numbers in (self.offset, self.shape))
        return f"{_PREFIX}{state}.{self.key}@{offset}+{shape}"

    def overlap(self, other: Box) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
        """Where the block that both share stands in this one and in the ``other``; None if they share none."""
        here, there = [], []
        for start, size, their_start, their_size in zip(
            self.offset, self.shape, other.offset, other.shape, strict=True
        ):
            low, high = max(start, their_start), min(start + size, their_start + their_size)
            if low >= high:
                return None
            here.append(slice(low - start, high - start))
            there.append(slice(low - their_start, high - their_start))
        return tuple(here), tuple(there)


@dataclass(frozen=True)
class _Part:
    """The range of a box that this rank's optimizer moves.

    Attributes:
        weights: the whole box of the model's parameter, in its shape.
        start: of the range in the flattened box.
        states: by name, views ``[stop - start]`` of the optimizer's own memory.
        replica: (pipeline, tensor, data) rank among those that hold the same range; all 0 for the one that counts.
        padded: the global tensor may be larger here than in the checkpoint (a vocabulary padded for more ranks).
    """

    box: Box
    weights: Tensor
    start: int
    states: dict[str, Tensor]
    replica: tuple[int, ...]
    padded: bool

    def sharded(self, state: str) -> ShardedTensor:
        data = self.states[state]
        return sharded(self.box.name(state), data, (self.box.numel,), (self.start,), self.replica)


def _parts(optimizer: Any, model_state: Mapping[str, Any]) -> Iterator[_Part]:
    """``model_state``: sharded state of the model that the optimizer moves. Moments that no step has made yet are made
    here, all 0, as the first step would.
    """
    of_parameter = {entry.data: entry for entry in nested_values(model_state)}
    for moved in moved_numbers(optimizer):
        for moment in _MOMENTS:
            if moment not in moved.state:
                moved.state[moment] = torch.zeros_like(moved.main)
        states = {moment: moved.state[moment].detach().view(-1) for moment in _MOMENTS}
        if moved.parameter.dtype != torch.float32:
            states["param"] = moved.main.detach().view(-1)
        yield from _by_box(moved, states, of_parameter[moved.parameter])


def _by_box(moved: Moved, states: dict[str, Tensor], entry: ShardedTensor | ShardedTensorFactory) -> Iterator[_Part]:
    blocks = nested_values(entry.build()) if isinstance(entry, ShardedTensorFactory) else [entry]
    replica = (*entry.replica_id[:2], entry.replica_id[2] if moved.everywhere else 0)
    for block in blocks:
        layers = (1,) * block.prepend_axis_num
        box = Box(block.key, tuple(block.global_offset), (*layers, *block.local_shape))
        first = block.data.storage_offset() - moved.parameter.storage_offset()  # of the box in the parameter
        low = max(moved.start, first)
        high = min(moved.start + moved.main.numel(), first + box.numel)
        if low < high:
            here = {name: values[low - moved.start : high - moved.start] for name, values in states.items()}
            yield _Part(box, block.data.detach(), low - first, here, replica, block.allow_shape_mismatch)


def optimizer_state(optimizer: Any, model_state: Mapping[str, Any]) -> dict[str, ShardedTensor]:
    """The optimizer's state on this rank, sharing its memory, under the checkpoint's keys. Issues no collective.

    ``model_state``: the model's sharded state, parameters and not copies of them.
    """
    tensors = (part.sharded(state) for part in _parts(optimizer, model_state) for state in part.states)
    return {tensor.key: tensor for tensor in tensors}


def steps_taken(optimizer: Any) -> int:
    """Steps that the moments have seen, which Adam's bias correction counts."""
    groups = chain.from_iterable(part.optimizer.param_groups for part in parts_of(optimizer))
    return max((int(group.get("step", 0)) for group in groups), default=0)


def load_optimizer_state(
    optimizer: Any, model_state: Mapping[str, Any], steps: int, index: Index, load: Load, device: torch.device
) -> None:
    """Fills the optimizer with what :func:`optimizer_state` wrote under any layout; ``steps`` as :func:`steps_taken`.

    The model holds its loaded weights already.

    Args:
        index: of the checkpoint.
        load: reads tensors of the checkpoint into place; collective over the world.
        device: of this rank, for one number.

    Collectives: ``load``, once, and once more for each GiB of boxes of another layout on the rank that has most;
    an all-reduce of 8 bytes over the world.

    Raises:
        CheckpointError: the checkpoint does not have all of a box.
    """
    whole, cut = {}, []
    for part in _parts(optimizer, model_state):
        for state in part.states:
            tensor = part.sharded(state)
            if tensor.key in index and index[tensor.key].shape == tensor.global_shape:
                whole[tensor.key] = tensor
            else:
                cut.append((part, state))
    load(whole)
    rounds = _rounds(cut, _boxes(index))
    most = torch.tensor([len(rounds)], device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    for number in range(int(most)):
        _put_together(rounds[number] if number < len(rounds) else [], load)
    for part in parts_of(optimizer):
        for group in part.optimizer.param_groups:
            if steps:
                group["step"] = steps


class _Cut(NamedTuple):
    """A part of the optimizer that the checkpoint has in other boxes, and those that it overlaps."""

    part: _Part
    state: str
    sources: list[Box]


def _boxes(index: Index) -> dict[tuple[str, str], list[Box]]:
    """The boxes of a checkpoint by state and key of the tensor."""
    found: dict[tuple[str, str], list[Box]] = {}
    for name in index:
        if name.startswith(_PREFIX):
            tensor, _, place = name.removeprefix(_PREFIX).rpartition("@")
            state, _, key = tensor.partition(".")
            offset, shape = (tuple(map(int, numbers.split(","))) for numbers in place.split("+"))
            found.setdefault((state, key), []).append(Box(key, offset, shape))
    return found


def _rounds(cut: list[tuple[_Part, str]], boxes: dict[tuple[str, str], list[Box]]) -> list[list[_Cut]]:
    rounds: list[list[_Cut]] = []
    held: dict[str, int] = {}
    for part, state in cut:
        sources = [box for box in boxes.get((state, part.box.key), []) if part.box.overlap(box)]
        _check_whole(part, state, sources)
        needed = {box.name(state): 4 * box.numel for box in sources}
        if not rounds or sum((held | needed).values()) > _ROUND_BYTES:
            rounds.append([])
            held = {}
        held |= needed
        rounds[-1].append(_Cut(part, state, sources))
    return rounds


def _check_whole(part: _Part, state: str, sources: list[Box]) -> None:
    found = sum(math.prod(s.stop - s.start for s in part.box.overlap(box)[0]) for box in sources)
    if found != part.box.numel and not (part.padded and sources):
        raise CheckpointError(
            f"the checkpoint has {found:,} of the {part.box.numel:,} numbers of the optimizer's {state} for "
            f"{part.box.key} at {part.box.offset}: it is damaged, or of another version of this package; move it away "
            "to go on from another one"
        )


@torch.no_grad()
def _put_together(cuts: list[_Cut], load: Load) -> None:
    request = {}
    for cut in cuts:
        for box in cut.sources:
            name, like = box.name(cut.state), cut.part.states[cut.state]
            request.setdefault(name, sharded(name, like.new_empty(box.numel), (box.numel,), (0,), 0))
    load(request)
    for part, state, sources in cuts:
        values = part.states[state]
        # What no box covers pads the vocabulary: its weights are the model's, and no gradient has reached it.
        made = part.weights.to(values.dtype) if state == "param" else torch.zeros_like(part.weights, dtype=values.dtype)
        made = made.reshape(part.box.shape).clone()
        for box in sources:
            here, there = part.box.overlap(box)
            made[here] = request[box.name(state)].data.view(box.shape)[there]
        values.copy_(made.view(-1)[part.start : part.start + len(values)])
