"""Causal attention through ``torch.nn.functional.scaled_dot_product_attention``.

Megatron-Core's local ``DotProductAttention`` materialises the scores ``[b, n, s, s]`` in fp32; SDPA does not. Used by
the local layer spec (CPU ranks, and GPUs without Transformer Engine).

Packs run sequence by sequence: SDPA with a mask over the whole pack would compute every score between sequences too,
and cost about twice the causal call where it does not.

Shapes: s sequence, b batch, n heads of this tensor-parallel rank, g key/value groups of this rank, d head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from nemo_rpo.megatron.batch.context_parallel import context_group, gather_over_context, positions_of
from nemo_rpo.megatron.batch.segments import Segments, later_mask


class CausalSDPA(MegatronModule):
    """Drop-in ``core_attention`` for causal self-attention without padding masks, on rows or on packs.

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
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        packed_seq_params: Segments | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """``query [s, b, n, d]``, ``key``/``value [s, b, g, d]`` -> context ``[s, b, n·d]``; b = 1 for a pack."""
        s, b, n, d = query.shape
        q_bnsd, k_bnsd, v_bnsd = self._heads_first(query, key, value)
        if packed_seq_params is None:
            context = self._attend(q_bnsd, k_bnsd, v_bnsd)
        else:
            context = self._attend_in_trees(q_bnsd, k_bnsd, v_bnsd, packed_seq_params)
        return context.permute(2, 0, 1, 3).reshape(s, b, n * d)

    @staticmethod
    def _heads_first(query: Tensor, key: Tensor, value: Tensor) -> Iterator[Tensor]:
        """``[b, n, s, d]`` of each; a group's key and value stand for all of its heads."""
        repeats = query.shape[2] // key.shape[2]
        if repeats > 1:
            key, value = key.repeat_interleave(repeats, dim=2), value.repeat_interleave(repeats, dim=2)
        return (t.permute(1, 2, 0, 3) for t in (query, key, value))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[b, n, s, d]`` of each; causal without a mask."""
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=self.softmax_scale,
            dropout_p=self.dropout if self.training else 0.0,
        )

    def _attend_in_trees(self, query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
        """Trunk and first branch are one causal sequence; a further branch sees the trunk and itself."""
        pieces = [length for tree in segments.trees for length in tree]
        # Split once: the gradient of a slice is a pack of zeros, that of a split is one concatenation.
        q_pieces, k_pieces, v_pieces = (iter(t.split(pieces, dim=2)) for t in (query, key, value))
        contexts = []
        for tree in segments.trees:
            q, k, v = ([next(part) for _ in tree] for part in (q_pieces, k_pieces, v_pieces))
            contexts.append(self._attend(*(torch.cat(t[:2], 2) if len(tree) > 1 else t[0] for t in (q, k, v))))
            for branch in range(2, len(tree)):
                keys, values = (torch.cat((t[0], t[branch]), 2) for t in (k, v))
                mask = segments.mask(tree[branch], tree[0], like=query)
                contexts.append(self._attend(q[branch], keys, values, mask))
        return torch.cat(contexts, 2)


class ContextSDPA(CausalSDPA):
    """:class:`CausalSDPA` under context parallelism, on rows or on packs: queries stay where they are, keys and values
    come to them.

    Collectives over the context-parallel group: an all-gather of keys and values ``[S, b, g, d]`` forward, a
    reduce-scatter of their gradients backward. Transformer Engine's ring attention passes them on in turn instead; the
    numbers are the same.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        packed_seq_params: Segments | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """``query [S/C, b, n, d]``, ``key``/``value [S/C, b, g, d]`` -> context ``[S/C, b, n·d]``."""
        group = context_group()
        s, b, n, d = query.shape
        rank, ranks = group.rank(), group.size()
        if packed_seq_params is None:
            places = [positions_of(r, ranks, s * ranks) for r in range(ranks)]
        else:
            places = packed_seq_params.places(ranks)
        whole = (gather_over_context(t, group, places) for t in (key, value))
        q_bnsd, k_bnsd, v_bnsd = self._heads_first(query, *whole)
        if packed_seq_params is None:
            contexts = self._attend_in_chunks(q_bnsd, k_bnsd, v_bnsd, rank, ranks)
        else:
            contexts = self._attend_in_runs(q_bnsd, k_bnsd, v_bnsd, packed_seq_params, rank, ranks)
        return torch.cat(contexts, 2).permute(2, 0, 1, 3).reshape(s, b, n * d)

    def _attend_in_chunks(self, query: Tensor, key: Tensor, value: Tensor, rank: int, ranks: int) -> list[Tensor]:
        """The two chunks of a rank; each sees all positions before it and itself."""
        chunk, contexts = query.shape[2] // 2, []
        for number, q in zip((rank, 2 * ranks - 1 - rank), query.split(chunk, 2), strict=True):
            before, seen = number * chunk, (number + 1) * chunk
            mask = later_mask(chunk, before, like=q)
            contexts.append(self._attend(q, key[:, :, :seen], value[:, :, :seen], mask))
        return contexts

    def _attend_in_runs(
        self, query: Tensor, key: Tensor, value: Tensor, segments: Segments, rank: int, ranks: int
    ) -> list[Tensor]:
        """The runs of a pack that this rank has: each sees its trunk, its own part before it, and itself."""
        runs = segments.runs(ranks)
        # Split once, as in `_attend_in_trees`.
        k_runs, v_runs = (t.split([run.length for run in runs], 2) for t in (key, value))
        mine = [number for number, run in enumerate(runs) if run.rank == rank]
        contexts = []
        for number, q in zip(mine, query.split([runs[i].length for i in mine], 2), strict=True):
            seen = (*runs[number].seen, number)
            keys, values = (torch.cat([t[i] for i in seen], 2) for t in (k_runs, v_runs))
            before = keys.shape[2] - q.shape[2]
            mask = segments.mask(q.shape[2], before, like=q) if before else None
            contexts.append(self._attend(q, keys, values, mask))
        return contexts
