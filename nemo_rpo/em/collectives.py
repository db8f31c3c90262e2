"""How the EM talks to other ranks: operations that the engine supplies, so that this room knows no process group."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


def _alone(tensor: Tensor) -> None:
    """A single process has the sum, and the first rank's tensor, already."""


def _own_rows(rows: Tensor) -> Tensor:
    return rows


class Collectives(NamedTuple):
    """Operations over ranks; the defaults are those of a single process.

    Attributes:
        all_reduce: sums a tensor over the ranks that hold different pairs, in place.
        gather_rows: concatenates [m, c] of every rank that holds different pairs, in rank order, into [M, c]; m may
            differ from rank to rank.
        from_first: overwrites a tensor with that of the first of all ranks, those that hold the same pairs included.
    """

    all_reduce: Callable[[Tensor], None] = _alone
    gather_rows: Callable[[Tensor], Tensor] = _own_rows
    from_first: Callable[[Tensor], None] = _alone
