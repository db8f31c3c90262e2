"""How the EM talks to other ranks: two operations that the engine supplies, so that this room knows no process
group."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


def _alone(tensor: Tensor) -> None:
    """The sum over one rank."""


def _own_rows(rows: Tensor) -> Tensor:
    return rows


class Collectives(NamedTuple):
    """Operations over the ranks that hold different pairs; the defaults are those of a single process.

    Attributes:
        all_reduce: sums a tensor over the ranks, in place.
        gather_rows: concatenates [m, c] of every rank, in rank order, into [M, c]; m may differ from rank to rank.
    """

    all_reduce: Callable[[Tensor], None] = _alone
    gather_rows: Callable[[Tensor], Tensor] = _own_rows
