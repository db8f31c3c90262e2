"""Causal attention through ``torch.nn.functional.scaled_dot_product_attention``.

Megatron-Core's local ``DotProductAttention`` materialises the scores ``[b, n, s, s]`` in fp32; SDPA does not. Used by
the local layer spec (CPU ranks, and GPUs without Transformer Engine).

Shapes: s sequence, b batch, n heads of this tensor-parallel rank, g key/value groups of this rank, d head size.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class CausalSDPA(MegatronModule):
    """Drop-in ``core_attention`` for causal self-attention without padding masks.

    Rows are padded on the right, so under a causal mask no real token ever attends to padding and no further mask is
    needed. Issues no collective: heads are split over tensor-parallel ranks.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(config=config)
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.softmax_scale = softmax_scale

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """``query [s, b, n, d]``, ``key``/``value [s, b, g, d]`` -> context ``[s, b, n·d]``."""
        s, b, n, d = query.shape
        repeats = n // key.shape[2]
        if repeats > 1:
            key, value = key.repeat_interleave(repeats, dim=2), value.repeat_interleave(repeats, dim=2)
        q_bnsd, k_bnsd, v_bnsd = (t.permute(1, 2, 0, 3) for t in (query, key, value))
        context = F.scaled_dot_product_attention(
            q_bnsd,
            k_bnsd,
            v_bnsd,
            is_causal=True,
            scale=self.softmax_scale,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return context.permute(2, 0, 1, 3).reshape(s, b, n * d)
