"""Work for one rank whose outcome concerns all: what global rank 0 finds or fails at, every rank returns or raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from nemo_rpo.errors import RPOError

T = TypeVar("T")


def on_first_rank(step: Callable[[], T]) -> T:
    """Runs ``step`` on global rank 0; its small, picklable result is every rank's. One object broadcast over the world.

    No rank goes on before ``step`` is over.

    Raises:
        RPOError: on every rank, the one that ``step`` raised.
    """
    outcome: list[object] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = step()
        except RPOError as exc:
            outcome[1] = exc
    dist.broadcast_object_list(outcome, src=0)
    result, failure = outcome
    if failure is not None:
        raise failure
    return result
