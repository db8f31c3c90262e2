"""Sums of probabilities that do not depend on the order of their terms."""

from __future__ import annotations

from torch import Tensor

# 28 binary places hold a posterior to 4e-9, and leave float64 room for 2²⁵ of them per annotator.
_GRID = 2.0**28


def exactly_summable(probability: Tensor) -> Tensor:
    """Rounds float64 probabilities to multiples of 2⁻²⁸, of which float64 adds 2²⁵ (33 million) without rounding.

    The order of micro-batches, ranks, shards and GPU atomics then has no influence on the sum, so reliabilities repeat
    bit for bit from run to run, and are the same under every layout that gives the same posteriors.
    """
    return (probability * _GRID).round() / _GRID
