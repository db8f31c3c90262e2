"""Greedy text without a cache: what :mod:`nemo_rpo.megatron.generate.cached` is held against.

Every new token runs the whole prefix again, through the same schedules that train it, under every layout.

Shapes: b rows of a micro-batch, s padded length, v vocabulary of this tensor-parallel rank (V of all ranks).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from nemo_rpo.megatron.frozen_policy import evaluation_mode
from nemo_rpo.megatron.step.schedule import run_schedule

T = TypeVar("T")


def pipeline_forward(
    chunks: Sequence[torch.nn.Module], micro_batches: Sequence[Tensor], read: Callable[[Tensor, int], T]
) -> list[T]:
    """Runs ``micro_batches`` (token ids ``[b, s]``, all of one shape) forward and reads the logits where they are.

    Returns ``[read(logits [b, s, v], i) for i-th micro-batch]`` on the last pipeline stage, an empty list on the
    others. The interleaved schedule needs a number of micro-batches that the pipeline size divides. Point-to-point over
    the pipeline group and the model's own tensor-parallel collectives; no gradients; dropout off.
    """
    b, s = micro_batches[0].shape

    def forward_step(batches: Iterator[tuple[int, Tensor]], chunk: torch.nn.Module) -> tuple[Tensor, Callable[..., T]]:
        index, tokens = next(batches)
        positions = torch.arange(s, device=tokens.device).expand_as(tokens)
        logits = chunk(tokens, positions, None)
        return logits, lambda output, non_loss_data: read(output, index)

    with evaluation_mode(chunks), torch.no_grad():
        return run_schedule(chunks, forward_step, list(enumerate(micro_batches)), b, s)


def greedy(
    chunks: Sequence[torch.nn.Module],
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    eos_id: int | None,
    vocab_size: int,
) -> list[list[int]]:
    """The most likely next token, again and again: for each prompt, its new token ids.

    A row ends after ``eos_id`` (which is part of it; None: never) or ``max_new_tokens``; all end when the last one
    does. ``vocab_size`` is the unpadded one: padded ids are never chosen, and of equal logits the lowest id is. Rows
    are padded on the right, where no real token attends. Collective over the tensor and pipeline groups; data-parallel
    replicas may generate from different prompts. Under expert parallelism, where they exchange tokens, it is collective
    over the world, from the same prompts, and each token is also broadcast over the world. Besides the forwards, each
    token costs an all-gather of ``[2, b]`` numbers over the tensor group and a broadcast of ``b`` ids over the pipeline
    group. Returns the same on every rank of them.
    """
    device = next(chunks[0].parameters()).device
    rows = [list(prompt) for prompt in prompts]
    starts = [len(row) for row in rows]
    running = list(range(len(rows)))
    for _ in range(max_new_tokens):
        if not running:
            break
        next_ids = _next_ids(chunks, [rows[i] for i in running], vocab_size, device)
        for i, token in zip(running, next_ids, strict=True):
            rows[i].append(token)
        running = [i for i in running if rows[i][-1] != eos_id]
    return [row[start:] for row, start in zip(rows, starts, strict=True)]


def _next_ids(
    chunks: Sequence[torch.nn.Module], rows: list[list[int]], vocab_size: int, device: torch.device
) -> list[int]:
    """The greedy token after each of ``rows``, on every rank of the tensor and pipeline groups."""
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    # The interleaved schedule needs a multiple of the pipeline size; a plain pipeline is merely fuller with as many.
    count = stages if len(chunks) > 1 else min(stages, len(rows))
    batches, lengths = _micro_batches(rows, count, length_multiple(chunks), device)

    def read(logits: Tensor, index: int) -> Tensor:
        last = lengths[index] - 1
        return _vocab_parallel_argmax(logits[torch.arange(len(last), device=device), last], vocab_size)

    found = pipeline_forward(chunks, batches, read)
    ids = torch.cat(found) if found else torch.empty(lengths.numel(), dtype=torch.long, device=device)
    if stages > 1:
        last_stage = parallel_state.get_pipeline_model_parallel_last_rank()
        dist.broadcast(ids, src=last_stage, group=parallel_state.get_pipeline_model_parallel_group())
    if parallel_state.get_expert_model_parallel_world_size() > 1:
        dist.broadcast(ids, src=0)  # else a last bit could end a row on one rank alone
    return ids[: len(rows)].tolist()


def length_multiple(chunks: Sequence[Any]) -> int:
    """Sequence parallelism splits the sequence over the tensor ranks."""
    config = chunks[0].config
    return config.tensor_model_parallel_size if config.sequence_parallel else 1


def _micro_batches(
    rows: list[list[int]], count: int, multiple: int, device: torch.device
) -> tuple[tuple[Tensor, ...], Tensor]:
    """``count`` equal micro-batches of right-padded ``rows`` and their lengths ``[count, b]``.

    The last row is repeated until they are equal.
    """
    rows = rows + [rows[-1]] * (-len(rows) % count)
    longest = -(-max(map(len, rows)) // multiple) * multiple
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return tokens.chunk(count), lengths.view(count, -1)


def _vocab_parallel_argmax(logits: Tensor, vocab_size: int) -> Tensor:
    """Ids ``[b]`` of the largest of ``vocab_size`` logits, of which each tensor-parallel rank has ``[b, v]``.

    Of equal logits the lowest id, as ``torch.argmax`` has it on one rank.
    """
    group = parallel_state.get_tensor_model_parallel_group()
    first_id = parallel_state.get_tensor_model_parallel_rank() * logits.shape[-1]
    ids = torch.arange(first_id, first_id + logits.shape[-1], device=logits.device)
    value, index = logits.float().masked_fill(ids >= vocab_size, float("-inf")).max(dim=-1)
    # Ids up to 2^53 are exact beside their logits in one float64 message.
    mine = torch.stack([value.double(), ids[index].double()])
    everyones = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyones, mine, group=group)
    values, candidates = torch.stack(everyones).unbind(dim=1)
    return candidates.gather(0, values.argmax(dim=0, keepdim=True)).squeeze(0).long()
