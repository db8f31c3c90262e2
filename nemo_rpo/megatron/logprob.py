"""Log-probabilities of the response tokens from vocabulary-parallel logits.

Shapes: n sequences, s padded length, V padded vocabulary, T tensor-parallel ranks.
"""

from __future__ import annotations

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from torch import Tensor

IGNORED = -100


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


def token_logprobs(logits: Tensor, labels: Tensor, vocab_size: int) -> Tensor:
    """log π(y_t | x, y_<t) of every response token, fp32 ``[n, s-1]``, 0 where the label is ignored.

    Position t of ``logits [n, s, V/T]`` predicts ``labels [n, s]`` at t+1; labels are -100 outside the response.
    Differentiable in ``logits``.

    Collectives: two all-reduces (max, then the sum of exponentials) and one for the target's logit over the
        tensor-parallel group, fp32 ``[n, s-1]`` each.
    """
    targets = labels[:, 1:]
    answered = targets != IGNORED
    # Masked here and overwritten by Megatron's cross entropy, which wants it contiguous: always a copy, the workspace.
    workspace = logits[:, :-1].to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    shifted = mask_padded_vocabulary(workspace, vocab_size)
    logprobs = -vocab_parallel_cross_entropy(shifted, targets.masked_fill(~answered, 0))
    return torch.where(answered, logprobs, 0.0)


def sequence_logprobs(logits: Tensor, labels: Tensor, vocab_size: int) -> Tensor:
    """log π(y | x) summed over the response, fp32 ``[n]``; see :func:`token_logprobs`."""
    return token_logprobs(logits, labels, vocab_size).sum(-1)
