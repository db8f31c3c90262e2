"""Names of torch that it does not promise to keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nemo_rpo.megatron.compat.places import reaches


@reaches("torch.optim.adamw:adamw(params, grads, exp_avgs, exp_avg_sqs, state_steps, fused, lr, weight_decay, eps)")
def fused_adamw(*args: Any, **kwargs: Any) -> None:
    """torch's fused AdamW kernel on lists of tensors; arguments as ``torch.optim.adamw.adamw``.

    Reason: ``torch.optim.AdamW`` counts steps beside each parameter, and Fused Adam's state, which checkpoints hold,
    once a group. The function behind the class takes the count from its caller.
    """
    from torch.optim.adamw import adamw

    adamw(*args, fused=True, **kwargs)


@reaches("torch.distributed.checkpoint.filesystem:_StorageInfo(relative_path, offset, length)")
def storage_info(file: str, offset: int, length: int) -> Any:
    """Where a tensor stands in a file of a ``torch_dist`` checkpoint: an entry of its index.

    Reason: a ``.nemo`` is written tensor by tensor, without a process group; the public writer needs all tensors at
    once, twice the weights in memory.
    """
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    return _StorageInfo(file, offset, length)


@reaches("torch.backends.mkldnn:is_available")
def onednn_linear() -> Callable[[Tensor, Tensor], Tensor] | None:
    """``x [m, k], w [n, k] -> x wᵀ`` by oneDNN, without autograd; None where this torch has none.

    Reason: torch sends fp32 products to MKL, and no public function picks oneDNN, which is faster on an AMD EPYC.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return None
    linear = torch.ops.mkldnn._linear_pointwise
    return lambda x, weight: linear(x, weight, None, "none", [], "")
