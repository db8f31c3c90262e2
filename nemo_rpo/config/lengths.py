"""What the lengths of rows and packs are multiples of."""

from __future__ import annotations

import math

from nemo_rpo.config.schema import ModelConfig

# Tokens of a rank that an FP8 product goes over: cuBLAS's alignment, and the block of a scale.
FP8_TOKENS = {"fp8_tensorwise": 16, "fp8_blockwise": 128, "fp8_mxfp8": 32}


def sequence_multiple(model: ModelConfig) -> int:
    """What each sequence of a pack has to be a multiple of where Transformer Engine's attention runs it: two chunks for
    each context-parallel rank.
    """
    return 2 * model.context_parallel_size if model.context_parallel_size > 1 else 1


def length_multiple(model: ModelConfig) -> int:
    """What every row's and pack's length has to be a multiple of, beside ``model.data.pad_length_to_multiple_of``.

    Sequence parallelism gives each tensor-parallel rank an equal slice; context parallelism each context rank two
    chunks of it, so that causal attention is balanced; and what is left on a rank has to suit its FP8 products, which
    Transformer Engine checks before it gathers the slices. The padding is a real token, and no loss reads it.

    >>> length_multiple(ModelConfig(tensor_model_parallel_size=2, sequence_parallel=True, context_parallel_size=2))
    8
    """
    slices = model.tensor_model_parallel_size if model.sequence_parallel else 1
    chunks = sequence_multiple(model)
    tokens = max(FP8_TOKENS.get(precision, 1) for precision in model.rpo.precisions())
    return math.lcm(slices * chunks, slices * model.context_parallel_size * tokens)
