"""Optimizer state of every parameter is saved from its own place, also behind a bucket that ends in padding.

Megatron-Core's format ``fully_reshardable`` (0.16.1 to 0.19.2) gathers the state of a buffer without the padding that
buckets end in, and then cuts each parameter out at its place *with* it: whatever follows a padded bucket would be saved
shifted, and a resumed run would go on from wrong moments without a word. A buffer has several buckets where gradients
are reduced while backward goes on, and where embedding and output layer share weights across pipeline stages.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

_GATHERED = ("param", "exp_avg", "exp_avg_sq")


@contextlib.contextmanager
def padding_kept(optimizer: Any) -> Iterator[None]:
    """Inside, ``optimizer.sharded_state_dict`` finds every parameter at its place; other optimizers are left alone."""
    with contextlib.ExitStack() as stack:
        for part in getattr(optimizer, "chained_optimizers", [optimizer]):
            if isinstance(part, DistributedOptimizer):
                gather = partial(_gather_with_padding, part, part.get_parameter_state_dp_zero)
                stack.enter_context(mock.patch.object(part, "get_parameter_state_dp_zero", gather))
        yield


def _gather_with_padding(optimizer: DistributedOptimizer, gather: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    state = gather(*args, **kwargs)
    if state is not None:  # None on ranks that gather nothing
        for index, buffer in enumerate(optimizer.buffers):
            for tensors in state[index].values():
                for name in _GATHERED:
                    if name in tensors:
                        tensors[name] = _spread(tensors[name], buffer.buckets)
    return state


def _spread(packed: torch.Tensor, buckets: list[Any]) -> torch.Tensor:
    pieces = packed.split([bucket.numel_unpadded for bucket in buckets])
    sizes = [bucket.grad_data.numel() for bucket in buckets]
    return torch.cat([F.pad(piece, (0, size - len(piece))) for piece, size in zip(pieces, sizes, strict=True)])
