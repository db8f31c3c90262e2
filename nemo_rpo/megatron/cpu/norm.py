"""RMSNorm and LayerNorm for the local layer spec, with the mark that sequence parallelism needs.

Under sequence parallelism each tensor-parallel rank normalises its own slice of the sequence, so the gradient of the
norm's weight is a partial sum. Megatron's ``finalize_model_grads`` all-reduces the gradients of parameters that carry
``sequence_parallel = True``; its own wrapper around torch's norms refuses sequence parallelism because it cannot set
the mark.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.autograd.function import FunctionCtx


class TorchNorm:
    """Builds :class:`RMSNorm` or ``torch.nn.LayerNorm`` after ``config.normalization``.

    Its parameters carry ``sequence_parallel``.
    """

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **kwargs: Any) -> torch.nn.Module:
        norm_class = RMSNorm if config.normalization == "RMSNorm" else torch.nn.LayerNorm
        norm = norm_class(hidden_size, eps=eps, dtype=config.params_dtype)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel
        return norm


class RMSNorm(torch.nn.RMSNorm):
    """torch's, which has a kernel on a GPU; on a CPU it is made of a dozen operations, and keeps three activations."""

    def forward(self, x: Tensor) -> Tensor:
        """``[…, h]`` -> ``[…, h]``."""
        return _RMSNorm.apply(x, self.weight, self.eps) if x.device.type == "cpu" else super().forward(x)


class _RMSNorm(torch.autograd.Function):
    """``y = x r w`` with ``r = (mean x² + ε)^-½``, in fp32; with upstream gradient g, ``∂w = Σ g x r`` and
    ``∂x = g w r − x r³ mean(g w x)``.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x32 = x.float()
        r = torch.linalg.vector_norm(x32, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        return (x32 * r).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Any, ...]:
        x, weight, r = ctx.saved_tensors
        x32, g, w, h = x.float(), upstream.float(), weight.float(), x.shape[-1]
        products = (g * x32).reshape(-1, h)
        of_weight = r.flatten() @ products
        shrink = (products @ w).view_as(r).mul_(r.pow(3)).div_(-h)
        of_x = (g * w).mul_(r).addcmul_(x32, shrink)
        return of_x.to(x.dtype), of_weight.to(weight.dtype), None
