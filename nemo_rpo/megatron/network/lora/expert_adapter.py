"""Adapters of experts: one of its own for each, on the tokens that the expert gets.

Megatron's dispatcher brings tokens to the ranks that hold their expert and adds up what these make of them, over the T'
expert-tensor ranks that split an expert too; the layers inside exchange nothing, and neither do their adapters. Shapes
as in :mod:`~nemo_rpo.megatron.network.lora.adapter`, with T' instead of T and n tokens instead of positions and rows:

    linear_fc1    n tokens, the same on the T' ranks    A [P r, i] whole         B [o/T', r] by rows
    linear_fc2    their i/T' numbers of each            A [P r, i/T'] by columns  B [o, r] whole: Σ B A_t x_t = B A x

What is whole on the T' ranks sees a part of the sum on each, so its gradients are added up over them
(:func:`add_up_gradients`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import finalize_model_grads
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.tensor_parallel.random import get_expert_parallel_rng_tracker_name
from torch import Tensor

from nemo_rpo.megatron.compat.linear_layers import adapted_output, is_grouped
from nemo_rpo.megatron.network.lora.adapter import ADAPTER, LowRankAdapter, put_beside

_WHOLE = "whole_on_expert_tensor_ranks"  # of a weight: its gradient is partial on each of them


class ExpertAdapter(LowRankAdapter):
    """That of one expert's linear layer."""

    @property
    def ranks(self) -> int:
        """T'."""
        return parallel_state.get_expert_tensor_parallel_world_size()

    @property
    def number(self) -> int:
        """This rank's among them."""
        return parallel_state.get_expert_tensor_parallel_rank()

    def _mark(self, whole: Tensor, split: Tensor) -> None:
        """As Megatron marks experts: ``allreduce`` says over which data-parallel ranks gradients are averaged, and
        ``tensor_model_parallel`` that the norm has numbers of every tensor rank, which may be other experts'; a
        ``shared`` one is a copy that the norm leaves out.
        """
        tensor_parallel.set_tensor_model_parallel_attributes(whole, True, 0, 1)
        setattr(whole, _WHOLE, True)
        whole.shared = self.number > 0
        for weight in (whole, split):
            weight.allreduce = parallel_state.get_expert_model_parallel_world_size() == 1

    def _exchanged(self, low: Tensor) -> Tensor:
        return low

    def _dropped(self, x: Tensor) -> Tensor:
        if not (self.dropout and self.training):
            return x
        if self.column:  # the T' ranks have the same numbers, and need the same mask
            return F.dropout(x, self.dropout)
        with get_cuda_rng_tracker().fork(get_expert_parallel_rng_tracker_name()):
            return F.dropout(x, self.dropout)


class GroupedAdapters(torch.nn.ModuleList):
    """Those of this rank's experts, beside a layer that runs all of them as one product."""

    @property
    def on(self) -> bool:
        """Whether the layer's output has them in it."""
        return self[0].on

    def forward(self, x: Tensor, tokens: Sequence[int]) -> Tensor:
        """``x [n, i]``, sorted by expert, of which each has ``tokens`` -> what they add to the layer's output."""
        return torch.cat([adapter(own) for adapter, own in zip(self, x.split(list(tokens)), strict=True)])


def put_beside_experts(layer: torch.nn.Module, made: Sequence[ExpertAdapter]) -> None:
    """Makes the adapter of an expert's ``layer``, or those of the experts of a grouped one, a part of it."""
    if not is_grouped(layer):
        put_beside(layer, *made)
        return
    group = GroupedAdapters(made)

    def add(of: torch.nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        x, tokens = arguments
        return adapted_output(of, x, output, (lambda tokens_of: group(tokens_of, tokens)) if group.on else None)

    layer.add_module(ADAPTER, group)
    layer.register_forward_hook(add)


def is_of_experts(parameter: Tensor) -> bool:
    """Whether it is of an expert that other ranks do not have; without expert parallelism there is none."""
    return not getattr(parameter, "allreduce", True)


def is_whole(parameter: Tensor) -> bool:
    """Whether it is an expert's adapter's, and the same on every expert-tensor rank."""
    return getattr(parameter, _WHOLE, False)


def finish_gradients(chunks: list[torch.nn.Module], *args: Any, **kwargs: Any) -> None:
    """Megatron's ``finalize_model_grads``, and :func:`add_up_gradients`."""
    finalize_model_grads(chunks, *args, **kwargs)
    add_up_gradients(chunks)


@torch.no_grad()
def add_up_gradients(chunks: Sequence[torch.nn.Module]) -> None:
    """Sums the gradients of what is whole on expert-tensor ranks, in place.

    Collective: one all-reduce over these ranks, 4 bytes a number; none where they do not split experts, or experts have
    no adapters.
    """
    group = parallel_state.get_expert_tensor_parallel_group()
    found = [of.main_grad for chunk in chunks for of in chunk.parameters() if is_whole(of)]
    if group.size() == 1 or not found:
        return
    joined = torch.cat([gradient.flatten() for gradient in found])
    dist.all_reduce(joined, group=group)
    for gradient, summed in zip(found, joined.split([gradient.numel() for gradient in found]), strict=True):
        gradient.copy_(summed.view_as(gradient))
