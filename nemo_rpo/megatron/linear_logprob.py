"""Log-probabilities of given tokens straight from hidden states: logits exist one block of the vocabulary at a time.

A language-model head over 128k words makes 512 KiB of fp32 logits a token, and autograd keeps them twice; for a batch
of pairs that is more than the rest of the model. Here a block of logits is used and thrown away, forward and again
backward, so the price is one more matrix product.

Shapes: n tokens, h hidden size, v rows of the head that this tensor-parallel rank holds, b rows of a block.

The plain way to the same numbers, through all logits: :mod:`nemo_rpo.megatron.logprob`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

# fp32 logits that exist at a time: 32 MiB on a CPU, of whose products larger blocks make no better ones.
BLOCK_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 27}


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    vocab_size: int,
    group: dist.ProcessGroup | None = None,
    block_elements: int | None = None,
) -> Tensor:
    """``log softmax(hidden · weightᵀ)[target]`` of every token, fp32 ``[n]``.

    Args:
        hidden: ``[n, h]``, equal on the ranks of ``group``.
        weight: ``[v, h]``, rows ``rank · v …`` of the head. Rows at and beyond ``vocab_size`` are padding: they get no
            probability and no gradient.
        targets: int64 ``[n]``, below ``vocab_size``.
        vocab_size: real tokens, over all ranks.
        group: the tensor-parallel ranks; None: this one has the whole head.
        block_elements: logits that exist at a time, n·b; None: :data:`BLOCK_ELEMENTS`.

    Differentiable in ``hidden`` and ``weight``, for any upstream gradient: with p the softmax and g the upstream
    gradient, ``∂hidden = Σ_v g (1[v = target] − p_v) weight_v`` is this rank's share of the sum, to be added up over
    ``group`` by whoever made ``hidden`` equal on its ranks. It is accumulated in fp32. A row of ``∂weight`` is the
    product of one block, with no sum over blocks to round; where Megatron keeps an fp32 ``weight.main_grad``, it is
    added there at once, as its own fused kernels do.

    Collectives: forward, two all-reduces over ``group``, of n and 2n fp32 numbers; backward, none.
    """
    return _LinearLogprobs.apply(hidden, weight, targets, vocab_size, group, block_elements)


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        vocab_size: int,
        group: dist.ProcessGroup | None,
        block_elements: int | None,
    ) -> Tensor:
        first_row = 0 if group is None else dist.get_rank(group) * weight.shape[0]
        ctx.rows = min(max(vocab_size - first_row, 0), weight.shape[0])
        ctx.block = max((block_elements or BLOCK_ELEMENTS[hidden.device.type]) // max(hidden.shape[0], 1), 1)
        local = targets - first_row
        log_sums, picked = [hidden.new_full(targets.shape, -torch.inf, dtype=torch.float32)], 0.0
        for block in _blocks(ctx.rows, ctx.block):
            logits = _logits(hidden, weight[block])
            column, inside = _columns(local, block)
            picked = picked + torch.where(inside, logits.gather(1, column).squeeze(1), 0.0)
            log_sums.append(_logsumexp_(logits))
        log_sum = torch.stack(log_sums).logsumexp(0)
        if group is not None:
            log_sum, picked = _over_ranks(log_sum, picked + torch.zeros_like(log_sum), group)
        ctx.save_for_backward(hidden, weight, local, log_sum)
        return picked - log_sum

    @staticmethod
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Any, ...]:
        hidden, weight, local, log_sum = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        hidden_grad = torch.zeros_like(hidden, dtype=torch.float32) if wants_hidden else None
        weight_grad = _WeightGradient(weight) if wants_weight else None
        upstream = upstream.float().unsqueeze(1)
        for block in _blocks(ctx.rows, ctx.block):
            gradient = _logits(hidden, weight[block]).sub_(log_sum.unsqueeze(1)).exp_().mul_(-upstream)
            column, inside = _columns(local, block)
            gradient.scatter_add_(1, column, torch.where(inside.unsqueeze(1), upstream, 0.0))
            gradient = gradient.to(hidden.dtype)
            if hidden_grad is not None:
                _add_product_(hidden_grad, gradient, weight[block])
            if weight_grad is not None:
                weight_grad.add(block, gradient, hidden)
        return (
            None if hidden_grad is None else hidden_grad.to(hidden.dtype),
            None if weight_grad is None else weight_grad.for_autograd(),
            *[None] * 4,
        )


class _WeightGradient:
    """Where the gradient of the head goes: into ``main_grad`` where Megatron's data parallelism keeps one, else into a
    tensor of its own.

    A gradient that is already in ``main_grad`` is announced as Megatron's linear layers do it: the parameter's flag is
    set, and autograd gets a dummy, of zeros where the same parameter has another gradient (tied embeddings).
    """

    def __init__(self, weight: Tensor) -> None:
        self._weight, self._direct = weight, getattr(weight, "grad_added_to_main_grad", None) is not None
        self._sum = weight.main_grad if self._direct else torch.zeros_like(weight)

    def add(self, rows: slice, gradient: Tensor, hidden: Tensor) -> None:
        """``+= gradient [n, b]ᵀ · hidden [n, h]``, on ``rows``."""
        _add_product_(self._sum[rows], gradient.t(), hidden)

    def for_autograd(self) -> Tensor:
        if not self._direct:
            return self._sum
        self._weight.grad_added_to_main_grad = True
        zeros = getattr(self._weight, "zero_out_wgrad", False)
        return torch.zeros_like(self._weight) if zeros else torch.empty_like(self._weight)


def _blocks(rows: int, block: int) -> Iterator[slice]:
    return (slice(start, min(start + block, rows)) for start in range(0, rows, block))


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """``[n, b]``, made in the model's precision as the output layer makes them, then fp32: a tensor of its own."""
    return (hidden @ weight.t()).float()


def _columns(local: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Each target's column in the block, ``[n, 1]`` (any, where it is in none), and whether it is in it, ``[n]``."""
    inside = (local >= block.start) & (local < block.stop)
    return (local - block.start).clamp(0, block.stop - block.start - 1).unsqueeze(1), inside


def _logsumexp_(logits: Tensor) -> Tensor:
    """Over the last dimension, in the memory of ``logits``, which it spoils."""
    largest = logits.amax(1, keepdim=True)
    return logits.sub_(largest).exp_().sum(1).log_().add_(largest.squeeze(1))


def _add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left · right``, without a temporary where all are of one precision."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)


def _over_ranks(log_sum: Tensor, picked: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Log of the sum of exponentials, and the target's logit, over the vocabulary of all ranks."""
    largest = log_sum.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    both = torch.stack(((log_sum - largest).exp(), picked))
    dist.all_reduce(both, group=group)
    return both[0].log().add_(largest), both[1]
