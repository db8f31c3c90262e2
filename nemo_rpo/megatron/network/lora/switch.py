"""A model with its adapters switched off, or worked into its weights, for the length of a block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from nemo_rpo.megatron.network.lora.attachment import adapters
from nemo_rpo.megatron.network.lora.expert_adapter import is_of_experts, is_whole


@contextlib.contextmanager
def switched_off(chunks: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Inside, the chunks are the base, bit for bit. Moves no weights; issues no collective."""
    held = [(adapter, adapter.on) for _, adapter in adapters(chunks)]
    for adapter, _ in held:
        adapter.on = False
    try:
        yield
    finally:
        for adapter, on in held:
            adapter.on = on


@contextlib.contextmanager
def merged(chunks: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Inside, W + (α/r) B A stands in the weights (rounded to their precision) and the adapters are off; afterwards W
    is back, bit for bit. The adapted weights wait in host memory. Issues no collective.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    with switched_off(chunks), torch.no_grad():
        for weight, adapter in adapters(chunks):
            kept.append((weight, weight.detach().to("cpu", copy=True)))
            weight.copy_(weight.float() + adapter.update())
        try:
            yield
        finally:
            for weight, before in kept:
                weight.copy_(before)


def trained_weights(chunks: Sequence[torch.nn.Module]) -> tuple[int, int]:
    """Weights that are trained, and all weights of the model, over its tensor, expert and pipeline ranks.

    Collectives: an all-reduce of 16 bytes over the pipeline's ranks.
    """
    counts = torch.zeros(2, dtype=torch.int64)
    for chunk in chunks:
        while hasattr(chunk, "module"):
            chunk = chunk.module
        tied_again = getattr(chunk, "share_embeddings_and_output_weights", False) and not chunk.pre_process
        for parameter in chunk.parameters():
            if tied_again and getattr(parameter, "shared_embedding", False):
                continue
            numbers = parameter.numel() * _parts(parameter)
            counts += torch.tensor([numbers * parameter.requires_grad, numbers])
    device = next(chunks[0].parameters()).device
    counts = counts.to(device)
    dist.all_reduce(counts, group=parallel_state.get_pipeline_model_parallel_group())
    trained, total = counts.tolist()
    return trained, total


def _parts(parameter: Tensor) -> int:
    """Ranks of a pipeline stage that hold other numbers of the same tensor, or of other experts' tensors."""
    if is_of_experts(parameter):
        experts = parallel_state.get_expert_model_parallel_world_size()
        split = not is_whole(parameter)
        return experts * (parallel_state.get_expert_tensor_parallel_world_size() if split else 1)
    split = getattr(parameter, "tensor_model_parallel", False) and not is_whole(parameter)
    return parallel_state.get_tensor_model_parallel_world_size() if split else 1
