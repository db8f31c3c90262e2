"""A language-model head applied a block of the vocabulary at a time: what the functions that never hold all logits
share.

Shapes: n tokens, h hidden size, v rows of the head that this tensor-parallel rank holds, b rows of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_rpo.megatron.compat.main_grad import announce_main_grad, keeps_main_grad

# fp32 logits that exist at a time: 32 MiB on a CPU, where larger blocks make the products no faster.
BLOCK_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 27}


def blocks(rows: int, hidden: Tensor, block_elements: int | None) -> list[slice]:
    """The first ``rows`` of a head in blocks of so many that ``n · b`` is ``block_elements`` (None:
    :data:`BLOCK_ELEMENTS`) for ``hidden [n, h]``.
    """
    size = max((block_elements or BLOCK_ELEMENTS[hidden.device.type]) // max(hidden.shape[0], 1), 1)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def block_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """``[n, b]``, made in the model's precision as the output layer makes them, then fp32: a tensor of its own."""
    return (hidden @ weight.t()).float()


def logsumexp_(logits: Tensor) -> Tensor:
    """Over the last dimension, in the memory of ``logits``, which it spoils."""
    largest = logits.amax(1, keepdim=True)
    return logits.sub_(largest).exp_().sum(1).log_().add_(largest.squeeze(1))


class HeadGradients:
    """The gradients of ``logits = hidden · weightᵀ``, block after block; each only where it is wanted.

    The hidden states' is a sum over blocks, kept in fp32. A row of the head's is one product, with no sum over blocks
    to round. It goes into ``main_grad`` where Megatron's data parallelism keeps one
    (:mod:`nemo_rpo.megatron.compat.main_grad`), else into a tensor of its own.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, wants_hidden: bool, wants_weight: bool) -> None:
        self._hidden, self._weight = hidden, weight
        self._of_hidden = torch.zeros_like(hidden, dtype=torch.float32) if wants_hidden else None
        self._in_main_grad = keeps_main_grad(weight)
        self._of_weight: Tensor | None = None
        if wants_weight:
            self._of_weight = weight.main_grad if self._in_main_grad else torch.zeros_like(weight)

    def add(self, block: slice, gradient: Tensor) -> None:
        """Takes the gradient ``[n, b]`` of a block's logits."""
        gradient = gradient.to(self._hidden.dtype)
        if self._of_hidden is not None:
            _add_product_(self._of_hidden, gradient, self._weight[block])
        if self._of_weight is not None:
            _add_product_(self._of_weight[block], gradient.t(), self._hidden)

    def for_autograd(self) -> tuple[Tensor | None, Tensor | None]:
        """Of hidden states and head, as autograd is given them."""
        return None if self._of_hidden is None else self._of_hidden.to(self._hidden.dtype), self._weights_for_autograd()

    def _weights_for_autograd(self) -> Tensor | None:
        if self._of_weight is None or not self._in_main_grad:
            return self._of_weight
        return announce_main_grad(self._weight)


def rows_here(vocab_size: int, first_row: int, weight: Tensor) -> int:
    """Rows of the shard ``weight [v, h]`` that are tokens; the others pad the vocabulary."""
    return min(max(vocab_size - first_row, 0), weight.shape[0])


def over_blocks(parts: list[Tensor], like: Tensor, empty: float) -> Tensor:
    """``parts [n]`` of the blocks as ``[blocks + 1, n]``, with a block of ``empty`` for a rank that has none."""
    return torch.stack([like.new_full(like.shape[:1], empty, dtype=torch.float32), *parts])


def _add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left · right``, without a temporary where all are of one precision."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)
