"""Log-probabilities of given tokens by Liger's fused linear cross-entropy, a Triton kernel for GPUs.

The same function as :func:`nemo_rpo.megatron.logprobs.chunked.linear_logprobs`, under the same contract; only which
kernel makes it differs, and the loss on top knows nothing of it.

A preference loss weighs tokens by upstream gradients of its own, of either sign. A fused cross-entropy that makes its
gradients in the forward, as if each upstream gradient were 1, and scales them afterwards cannot be right about the
head's: that is a sum over tokens. Liger's did so for ``reduction="none"`` once; it now puts the gradients off to the
backward, and :func:`check_liger` looks for that.
"""

from __future__ import annotations

import importlib.util
import inspect

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_rpo.errors import ConfigError
from nemo_rpo.megatron.logprobs.chunked import linear_logprobs


def check_liger(vocab_size: int, padded_vocab_size: int, tensor_parallel: int) -> None:
    """Raises :class:`ConfigError` where Liger is not installed or would give other gradients."""
    setting = "model.rpo.logprob_head=liger"
    if importlib.util.find_spec("liger_kernel") is None:
        raise ConfigError(f"{setting} needs liger-kernel 0.8.5: install it, or set it to chunked")
    from liger_kernel.ops.fused_linear_cross_entropy import fused_linear_cross_entropy_forward

    if "token_grad_output" not in inspect.signature(fused_linear_cross_entropy_forward).parameters:
        raise ConfigError(
            f"{setting} needs liger-kernel 0.8.5: the one installed takes no upstream gradient for each token, and the "
            "head's gradient would be wrong; update it, or set it to chunked"
        )
    if tensor_parallel > 1 and vocab_size != padded_vocab_size:
        raise ConfigError(
            f"{setting} gives probability to the {padded_vocab_size - vocab_size} rows that pad the vocabulary of "
            f"{vocab_size} over {tensor_parallel} tensor-parallel ranks: set it to chunked, or "
            "model.make_vocab_size_divisible_by so that there are none"
        )


def liger_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Arguments, result and gradients as those of :func:`linear_logprobs`, except that the head's gradient comes by
    autograd, in the head's precision, and is never put into ``main_grad``.

    Collectives: with a ``group``, Liger's own, two all-reduces for each 512 tokens forward and one of ``[n, h]``
    backward.
    """
    if not len(hidden):  # which Liger has no kernel for
        return linear_logprobs(hidden, weight, targets, vocab_size, group)
    from liger_kernel.transformers import functional as liger

    if group is None:
        return -liger.liger_fused_linear_cross_entropy(
            hidden, weight[:vocab_size], targets, reduction="none", accum_dtype=torch.float32
        )
    if hidden.requires_grad:
        ranks = group.size()
        hidden = hidden.view_as(hidden)
        # Liger adds up over the ranks what our callers will add up once more.
        hidden.register_hook(lambda gradient: gradient / ranks)
    return -liger.liger_fused_linear_scaled_cross_entropy_tp(hidden, weight, targets, group)
