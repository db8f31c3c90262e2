"""How often a response beats the policy that wrote it, from what is believed of the pairs it was compared in.

Shapes: n pairs.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

# A belief is a probability of votes that may all be wrong: log-odds are held within those of one in a hundred, or the
# score of a response would be that of its surest comparison alone.
_SUREST = 0.01


class AgainstPolicy(NamedTuple):
    """Of each pair's two responses [n, 2], the pair's own first.

    Attributes:
        win_rate: P(y ≻ π_t | x), the probability to beat another response of the policy.
        score: s(y ≻ π_t | x), its mean log-odds against one.
    """

    win_rate: np.ndarray
    score: np.ndarray


def against_policy(
    prompt: Sequence[Hashable], first: Sequence[Hashable], second: Sequence[Hashable], w: np.ndarray
) -> AgainstPolicy:
    r"""Means over the responses that stand for the policy: those it was compared with, and the response itself.

    ::

        P(y ≻ π_t) = (½ + Σ_j P(y ≻ y_j)) / (1 + m)        s(y ≻ π_t) = Σ_j logit P(y ≻ y_j) / (1 + m)

    with y_1 … y_m the responses to the same prompt that y was judged against. Where all pairs of K samples are judged
    it is SPPO's estimate, whose average over the K samples includes y itself; a response that was compared once is
    drawn to ½ by that one comparison with itself. ``sppo`` and ``egpo`` take the rates, ``gpo`` the scores.

    Args:
        prompt, first, second: what tells prompts and responses apart, such as their texts [n].
        w: probability that ``first`` is the better one, float [n]; NaN where nothing is known of a pair.

    >>> found = against_policy(["x"] * 3, ["a", "a", "b"], ["b", "c", "c"], np.array([0.9, 0.8, 0.5]))
    >>> found.win_rate.round(3).tolist()  # of a (½ + .9 + .8)/3, of b (½ + .1 + .5)/3, of c (½ + .2 + .5)/3
    [[0.733, 0.367], [0.733, 0.4], [0.367, 0.4]]
    """
    index: dict[tuple[Hashable, Hashable], int] = {}
    places = np.array(
        [[index.setdefault((x, y), len(index)) for y in pair] for x, *pair in zip(prompt, first, second, strict=True)],
        dtype=np.int64,
    ).reshape(-1, 2)
    w = np.asarray(w, dtype=np.float64)
    known = ~np.isnan(w)
    held = np.clip(w[known], _SUREST, 1 - _SUREST)
    score = np.log(held / (1 - held))
    sums, times = np.zeros((2, len(index))), np.ones(len(index))
    for side, (rate, log_odds) in enumerate(((w[known], score), (1 - w[known], -score))):
        of = places[known, side]
        np.add.at(times, of, 1)
        np.add.at(sums[0], of, rate)
        np.add.at(sums[1], of, log_odds)
    sums[0] += 0.5
    rates, scores = sums / times
    return AgainstPolicy(rates[places], scores[places])
