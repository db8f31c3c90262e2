"""The core attention of every layer, replaced for the time of a generation by one that remembers keys and values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch

from nemo_rpo.megatron.compat.places import reaches


@reaches(
    "megatron.core.transformer.attention:SelfAttention[core_attention]",
    "megatron.core.transformer.transformer_block:TransformerBlock[layers]",
    "megatron.core.transformer.transformer_layer:TransformerLayer[self_attention]",
)
@contextlib.contextmanager
def core_attention_of(
    chunks: Sequence[torch.nn.Module], made: Callable[[torch.nn.Module], torch.nn.Module]
) -> Iterator[None]:
    """Inside the block each layer of the (unwrapped) GPT ``chunks`` has ``made(its core attention)`` instead.

    Reason: Megatron's own caches (``inference_context``) belong to its inference engines, whose interface moved in each
    of the supported releases and which do not run on a CPU; a core attention takes query, key and value ``[s, b, heads,
    d]`` after rotation, under either layer spec, and has done so since 0.5. It holds no weights, so nothing that is
    saved, loaded or reduced knows the difference.
    """
    attentions = [layer.self_attention for chunk in chunks for layer in chunk.decoder.layers]
    originals = [attention.core_attention for attention in attentions]
    try:
        for attention, original in zip(attentions, originals, strict=True):
            attention.core_attention = made(original)
        yield
    finally:
        for attention, original in zip(attentions, originals, strict=True):
            attention.core_attention = original
