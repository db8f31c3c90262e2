"""Log-probabilities of given tokens from vocabulary-parallel logits, by Megatron's own cross entropy.

The plain way, beside which :mod:`nemo_rpo.megatron.logprobs.chunked` is tested.

Shapes: n tokens, V padded vocabulary, T tensor-parallel ranks.
"""

from __future__ import annotations

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from torch import Tensor


def mask_padded_vocabulary(logits: Tensor, vocab_size: int) -> Tensor:
    """Sets the columns of ``logits [..., V/T]`` that belong to vocabulary padding to the lowest float, in place.

    The padding rows of the embedding exist so that every tensor-parallel size divides the vocabulary; they are not
    tokens. Left in, they would take probability from the real ones, and a checkpoint's log-probs would differ from
    those of the model it came from.
    """
    width = logits.shape[-1]
    first = parallel_state.get_tensor_model_parallel_rank() * width
    real = min(max(vocab_size - first, 0), width)
    if real < width:
        logits[..., real:] = torch.finfo(logits.dtype).min
    return logits


def token_logprobs(logits: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """``log softmax(logits)[target]`` of every token, fp32 ``[n]``, from ``logits [n, V/T]`` and ``targets [n]``.

    Differentiable in ``logits``. Collectives: three all-reduces over the tensor-parallel group (the maximum, the
    target's logit, the sum of exponentials), fp32 ``[n]`` each.
    """
    # Masked here and overwritten by Megatron's cross entropy, which wants it contiguous: always a copy, the workspace.
    workspace = logits.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return -vocab_parallel_cross_entropy(mask_padded_vocabulary(workspace, vocab_size), targets)
