"""Work for one rank whose outcome concerns others: what it finds or fails at, they return or raise."""

from __future__ import annotations

import socket
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


def once_a_node(step: Callable[[], T]) -> T:
    """Runs ``step`` on the first rank of every node; its small, picklable result is that of the node's other ranks.

    Two object gathers over the world: of the host names, and of the outcomes. No rank goes on before every node is
    done.

    Raises:
        RPOError: on every rank, the first one that ``step`` raised on any node.
    """
    hosts: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(hosts, socket.gethostname())
    outcome: tuple[T | None, RPOError | None] = None, None
    first = hosts.index(hosts[dist.get_rank()])
    if dist.get_rank() == first:
        try:
            outcome = step(), None
        except RPOError as exc:
            outcome = None, exc
    outcomes = [outcome] * len(hosts)
    dist.all_gather_object(outcomes, outcome)
    for _, failure in outcomes:
        if failure is not None:
            raise failure
    return outcomes[first][0]
