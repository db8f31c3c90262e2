"""Rankings as their pairs: K responses are K(K-1)/2 pairs, one after the other, better and worse in the order
(0, 1), (0, 2), …, (1, 2), …, so that the first K-1 are the best response with each of the others.

A *grid* of rankings gives each as many places as the longest has pairs, and each pair (i, j) the same one in all.
"""

from __future__ import annotations

import math

import numpy as np


def pairs_of(responses: int) -> int:
    """K(K-1)/2.

    >>> [pairs_of(k) for k in (2, 3, 4)]
    [1, 3, 6]
    """
    return responses * (responses - 1) // 2


def responses_of(pairs: int) -> int:
    """K of a ranking of so many pairs.

    >>> [responses_of(pairs) for pairs in (1, 3, 6)]
    [2, 3, 4]
    """
    return (1 + math.isqrt(1 + 8 * pairs)) // 2


def better_and_worse(responses: int) -> np.ndarray:
    """Which responses each pair compares, int64 [2, K(K-1)/2].

    >>> better_and_worse(3).tolist()
    [[0, 0, 1], [1, 2, 2]]
    """
    return np.stack(np.triu_indices(responses, 1))


def places_in_grid(pairs: int, responses: int) -> np.ndarray:
    """Where a ranking's ``pairs`` stand in a grid for up to ``responses``, int64 [pairs].

    >>> places_in_grid(3, responses=4).tolist()
    [0, 1, 3]
    """
    return np.flatnonzero(better_and_worse(responses)[1] < responses_of(pairs))
