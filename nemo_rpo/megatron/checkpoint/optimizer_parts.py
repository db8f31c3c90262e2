"""Optimizer state: each rank saves its own part without a gather or a copy, and every layout can read it.

A *box* is the block of a global tensor that one model-parallel rank holds: the tensor's key, an offset and a shape in
global coordinates. (A gated ``linear_fc1`` is two boxes, its gate rows and its up rows.) The distributed optimizer
steps a range ``[start, stop)`` of a flattened box on each data-parallel rank; the plain optimizer steps all of it on
every rank.

For each box of n numbers and each state the checkpoint has a 1-D tensor ``optimizer.<state>.<key>@<offset>+<shape>``
``[n]``. The states are ``exp_avg``, ``exp_avg_sq`` and, for 16-bit weights, ``param`` (their fp32 copy). Each rank
writes its range: 8 bytes a number, 12 for 16-bit weights.

The files contain neither padding nor bucket boundaries, so the number of data-parallel ranks, the bucket size and the
kind of optimizer may change on resume. Another tensor or pipeline layout has other boxes; the loader assembles them
from the stored boxes that overlap them.
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
from nemo_rpo.megatron.checkpoint.run_tensors import sharded
from nemo_rpo.megatron.compat.megatron_optimizer import Moved, moved_numbers, parts_of

_PREFIX, _MOMENTS = "optimizer.", ("exp_avg", "exp_avg_sq")
_ROUND_BYTES = 1 << 30  # most bytes of stored boxes in memory while boxes of another layout are assembled

Load = Callable[[dict[str, ShardedTensor]], dict[str, Tensor]]


class Box(NamedTuple):
    """A block of the global tensor ``key``; ``offset`` and ``shape`` include the layer axis, if the tensor has one."""

    key: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Numbers in the box."""
        return math.prod(self.shape)

    def name(self, state: str) -> str:
        """The checkpoint's key for a state of this box."""
        offset, shape = (",".join(map(str, numbers)) for numbers in (self.offset, self.shape))
        return f"{_PREFIX}{state}.{self.key}@{offset}+{shape}"

    def overlap(self, other: Box) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
        """Slices of the common block in this box and in the ``other``; None if they do not overlap."""
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
    """The range of a box that this rank's optimizer steps.

    Attributes:
        weights: the model's values of the whole box.
        start: start of the range in the flattened box.
        states: by name, views ``[stop - start]`` of the optimizer's memory.
        replica: (pipeline, tensor, data) index among the ranks with the same range; the one with all 0 writes it.
        padded: the stored tensor may be smaller (a vocabulary padded for fewer tensor-parallel ranks).
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
    """This rank's parts. ``model_state``: the sharded state of the model's parameters.

    Moments that do not exist yet (no step was taken) are created with zeros, as the first step would do.
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
    """This rank's optimizer state by checkpoint key, sharing the optimizer's memory. Issues no collective.

    ``model_state``: the model's sharded state, which must refer to the parameters themselves.
    """
    tensors = (part.sharded(state) for part in _parts(optimizer, model_state) for state in part.states)
    return {tensor.key: tensor for tensor in tensors}


def steps_taken(optimizer: Any) -> int:
    """Optimizer steps so far, the counter of Adam's bias correction."""
    groups = chain.from_iterable(part.optimizer.param_groups for part in parts_of(optimizer))
    return max((int(group.get("step", 0)) for group in groups), default=0)


def load_optimizer_state(
    optimizer: Any, model_state: Mapping[str, Any], steps: int, index: Index, load: Load, device: torch.device
) -> None:
    """Restores what :func:`optimizer_state` saved under any layout; ``steps`` is the saved :func:`steps_taken`.

    The model's weights must be loaded before.

    Args:
        index: of the checkpoint.
        load: reads tensors of the checkpoint into place; collective over the world.
        device: of this rank, for one number.

    Collectives: an all-reduce of 8 bytes over the world; ``load`` once, and, under another layout, once more for each
    GiB of stored boxes that the busiest rank needs.

    Raises:
        CheckpointError: the checkpoint does not cover a box.
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
    """A part whose box the checkpoint stores in other boxes, and the stored boxes that overlap it."""

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
        # Values that no stored box covers are vocabulary padding: keep the model's weights and zero moments.
        made = part.weights.to(values.dtype) if state == "param" else torch.zeros_like(part.weights, dtype=values.dtype)
        made = made.reshape(part.box.shape).clone()
        for box in sources:
            here, there = part.box.overlap(box)
            made[here] = request[box.name(state)].data.view(box.shape)[there]
        values.copy_(made.view(-1)[part.start : part.start + len(values)])
