"""Matrix products of a CPU's layers through oneDNN.

torch gives fp32 products to MKL. oneDNN, which torch brings along and uses for bf16, is faster on an AMD EPYC: on one
thread 95 against 80 GFLOP/s. Megatron's linear layers make the products of a step in their own autograd functions, by
``torch.matmul`` and ``Tensor.matmul``: what those two are given without a gradient to follow goes to oneDNN from here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from nemo_rpo.megatron.compat.torch_internals import onednn_linear

_SMALL = 2**20  # products of fewer multiplications are over before oneDNN has found its kernel


def through_onednn(matmul: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``matmul``, with large fp32 products ``[…, k] × [k, n]`` that autograd does not follow sent to oneDNN.

    Those of weight gradients, whose left side is transposed, stay: there MKL is the faster one. Without oneDNN in this
    torch all do.
    """
    linear = onednn_linear()
    if linear is None:
        return matmul

    @functools.wraps(matmul)
    def product(left: Tensor, right: Tensor, **options: Tensor) -> Tensor:
        followed = torch.is_grad_enabled() and (left.requires_grad or right.requires_grad)
        if (
            options
            or followed
            or left.dtype != torch.float32
            or right.dtype != torch.float32
            or right.dim() != 2
            or not left.is_contiguous()
            or left.numel() * right.shape[1] < _SMALL
        ):
            return matmul(left, right, **options)
        return linear(left, right.t())

    return product
