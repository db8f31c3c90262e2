"""W + (α/r) B A beside one linear layer whose W is frozen, split over tensor-parallel ranks as the layer is.

Shapes: s positions (s/T of them on a rank under sequence parallelism), b rows, i and o the layer's inputs and outputs,
T tensor-parallel ranks, r the rank, P parts (matrices of a fused layer that have an A of their own).

    column-parallel layer (o/T outputs a rank)      A [P r, i] whole on every rank    B [o/T, r] by rows
    row-parallel layer    (i/T inputs a rank)       A [P r, i/T] by columns           B [o, r] whole on every rank

Between A and B there are r numbers a position, and only they travel: an adapter never gathers hidden states.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from megatron.core import parallel_state, tensor_parallel
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    get_cuda_rng_tracker,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from torch import Tensor

from nemo_rpo.megatron.compat.linear_layers import adapted_output
from nemo_rpo.megatron.compat.transformer_engine import hand_out_normed_input

ADAPTER = "adapter"  # the adapter's name in its layer: `….linear_qkv.adapter.linear_in.weight`


class Rows(NamedTuple):
    """How a layer's rows on this rank belong to its matrices: ``groups`` times one run of each matrix, in their order.

    Attributes:
        runs: of each matrix its rows in one group, and the part (the A) that it belongs to; None: it has no adapter.
    """

    groups: int
    runs: tuple[tuple[int, int | None], ...]

    @property
    def adapted(self) -> int:
        """Rows that B has."""
        return self.groups * sum(rows for rows, part in self.runs if part is not None)


class Out(torch.nn.Module):
    """B: each row reads the r numbers of its own part."""

    def __init__(self, rows: Rows, parts: int, rank: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.rows, self.parts = rows, parts
        self.weight = torch.nn.Parameter(torch.zeros(rows.adapted, rank, dtype=dtype))

    def forward(self, low: Tensor) -> Tensor:
        """``low [s, b, P r]`` -> ``[s, b, o/T]``, 0 in rows that have no adapter."""
        if self.parts == 1 and len(self.rows.runs) == 1:
            return F.linear(low, self.weight)
        of_part = low.unflatten(-1, (self.parts, -1)).unbind(-2)
        made, lead = [], (*low.shape[:-1], self.rows.groups)
        blocks = iter(self.blocks())
        for rows, part in self.rows.runs:
            if part is None:
                made.append(low.new_zeros(*lead, rows))
            else:
                made.append(F.linear(of_part[part], next(blocks).flatten(0, 1)).unflatten(-1, (-1, rows)))
        return torch.cat(made, -1).flatten(-2)

    def blocks(self) -> Sequence[Tensor]:
        """The rows of each matrix that has an adapter, ``[groups, rows, r]``."""
        sizes = [rows for rows, part in self.rows.runs if part is not None]
        return self.weight.unflatten(0, (self.rows.groups, -1)).split(sizes, 1)


class LowRankAdapter(torch.nn.Module):
    """One layer's adapter: its weights, and what it adds to the layer's output while it is ``on``.

    Args:
        weight: W on this rank, of Megatron's or Transformer Engine's column- or row-parallel linear layer.
        rows: of the layer's output on this rank.
        parts: P. rank: r. scale: α/r.
        dropout: of the input, while the model is training.
        column: the layer is column-parallel.
        sequence_parallel: activations between layers are split along the sequence.
        stacks_two: B on a rank is the rank's rows of one matrix on those of another (gate and up).
        method: of A's first numbers. random_of: what they depend on, and nothing else.

    Attributes:
        on: whether the layer's output has the adapter in it.
    """

    def __init__(
        self,
        weight: Tensor,
        rows: Rows,
        parts: int,
        rank: int,
        scale: float,
        dropout: float,
        column: bool,
        sequence_parallel: bool,
        stacks_two: bool,
        method: str,
        random_of: str,
    ) -> None:
        super().__init__()
        self._method, self._random_of, self.stacks_two = method, random_of, stacks_two
        self.parts, self.rank, self.scale, self.dropout = parts, rank, scale, dropout
        self.column, self.sequence_parallel, self.on = column, sequence_parallel, True
        inputs = weight.shape[1]
        self.linear_in = torch.nn.utils.skip_init(torch.nn.Linear, inputs, parts * rank, bias=False, dtype=weight.dtype)
        self.linear_out = Out(rows, parts, rank, weight.dtype)
        self.to(weight.device)
        whole, split = (self.linear_in, self.linear_out) if column else (self.linear_out, self.linear_in)
        tensor_parallel.set_tensor_model_parallel_attributes(split.weight, True, 0 if column else 1, 1)
        self._mark(whole.weight, split.weight)
        self.start()

    @property
    def ranks(self) -> int:
        """T."""
        return parallel_state.get_tensor_model_parallel_world_size()

    @property
    def number(self) -> int:
        """This rank's among them."""
        return parallel_state.get_tensor_model_parallel_rank()

    def _mark(self, whole: Tensor, split: Tensor) -> None:
        """Tells Megatron what is whole on every rank: each sees its own positions, and Megatron adds up the gradients
        of what is marked.
        """
        whole.sequence_parallel = self.sequence_parallel

    @torch.no_grad()
    def start(self) -> None:
        """A by its method (``xavier``: normal; ``kaiming``: uniform, peft's), the same for every layout; B 0."""
        weight = self.linear_in.weight
        inputs = weight.shape[1] * (1 if self.column else self.ranks)
        whole, digest = torch.empty(self.parts * self.rank, inputs), hashlib.sha256(self._random_of.encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
        if self._method == "xavier":
            whole.normal_(std=(2 / (inputs + self.rank)) ** 0.5, generator=generator)
        else:
            whole.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
        first = 0 if self.column else self.number * weight.shape[1]
        weight.copy_(whole[:, first : first + weight.shape[1]])
        self.linear_out.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """``x``, as the layer sees it -> what it adds to the layer's output.

        Collectives over the tensor-parallel ranks, of ``[s, b, P r]``: of a column-parallel layer an all-reduce
        backward, with sequence parallelism an all-gather forward and a reduce-scatter backward; of a row-parallel one
        an all-reduce forward, with sequence parallelism a reduce-scatter forward and an all-gather backward.
        """
        return self.linear_out(self._exchanged(self.linear_in(self._dropped(x))) * self.scale)

    def _exchanged(self, low: Tensor) -> Tensor:
        if self.column and self.sequence_parallel:
            return gather_from_sequence_parallel_region(low, tensor_parallel_output_grad=True)
        if self.column:
            return copy_to_tensor_model_parallel_region(low)
        if self.sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(low)
        return reduce_from_tensor_model_parallel_region(low)

    def _dropped(self, x: Tensor) -> Tensor:
        if not (self.dropout and self.training):
            return x
        if self.column and not self.sequence_parallel:  # every rank has the same numbers, and needs the same mask
            return F.dropout(x, self.dropout)
        with get_cuda_rng_tracker().fork():
            return F.dropout(x, self.dropout)

    @torch.no_grad()
    def update(self) -> Tensor:
        """(α/r) B A, of this rank's part of W, fp32."""
        made, parts = [], self.linear_in.weight.float().unflatten(0, (self.parts, self.rank))
        blocks = iter(self.linear_out.blocks())
        for rows, part in self.linear_out.rows.runs:
            if part is None:
                made.append(parts.new_zeros(self.linear_out.rows.groups, rows, parts.shape[-1]))
            else:
                made.append(next(blocks).float() @ parts[part])
        return torch.cat(made, 1).flatten(0, 1).mul_(self.scale)


def put_beside(layer: torch.nn.Module, adapter: LowRankAdapter) -> None:
    """Makes ``adapter`` a part of ``layer``, whose output it then adds to."""

    def add(of: torch.nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        return adapted_output(of, arguments[0], output, adapter if adapter.on else None)

    hand_out_normed_input(layer)
    layer.add_module(ADAPTER, adapter)
    layer.register_forward_hook(add)
