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


class TorchNorm:
    """Builds ``torch.nn.RMSNorm`` or ``torch.nn.LayerNorm`` after ``config.normalization``;

    parameters carry ``sequence_parallel``.
    """

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **kwargs: Any) -> torch.nn.Module:
        norm_class = torch.nn.RMSNorm if config.normalization == "RMSNorm" else torch.nn.LayerNorm
        norm = norm_class(hidden_size, eps=eps, dtype=config.params_dtype)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel
        return norm
