"""How sure strengths over time are, against the field. Shapes: m states, N players, T slices, b draws."""

from __future__ import annotations

import numpy as np

from nemo_rpo.ranking.over_time.over_time_settings import OverTimeSettings
from nemo_rpo.ranking.over_time.states import States
from nemo_rpo.ranking.over_time.walk import Mode, Walk

_RESIDUAL = 1e-2  # of a draw


class Field:
    """The mean strength of all players in every slice, or of the unchanged ones where there are any.

    Between the slices that a player played in its strength is interpolated, before and after them it is held.

    Args:
        unchanged: bool [N].
    """

    def __init__(self, states: States, unchanged: np.ndarray) -> None:
        self.states = states
        players, first, _ = states.ends()
        counted = unchanged if unchanged.any() else np.isin(np.arange(len(unchanged)), players)
        self.weight = (counted / counted.sum())[states.player]
        self._first = first

    def mean(self, s: np.ndarray) -> np.ndarray:
        """In the slice of every state, [m]."""
        states, step = self.states, self.states.step
        slope = self.weight[step] * (s[step + 1] - s[step]) / states.gap
        turns = np.bincount(states.slice[step], slope, states.slices)
        turns -= np.bincount(states.slice[step + 1], slope, states.slices)
        rise = np.cumsum(turns)
        start = float(self.weight[self._first] @ s[self._first])
        return (start + np.r_[0.0, np.cumsum(rise)[:-1]])[states.slice]


def variances(
    walk: Walk, scale: float, mode: Mode, field: Field, settings: OverTimeSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Of every strength less the field's [m], and of every player's last less its first, in the order of
    ``states.ends()``.

    Games tell differences alone, so the common level of all is known by the prior and no more, and is left out.

    Beyond ``exact_states`` as P. Sidén et al. (J. Comp. Graph. Stat. 27, 2018) do: the variance of a player's strengths
    given everybody else's is exact, and only the variance of their mean given everybody else's is that of draws.
    """
    chains, states = mode.curvature, walk.states
    _, first, last = states.ends()
    if len(states) <= settings.exact_states:
        operator = np.eye(len(states)) - np.stack([field.mean(unit) for unit in np.eye(len(states))], 1)
        full = operator @ np.linalg.inv(chains.dense()) @ operator.T
        own = np.diag(full)
        return own, own[last] + own[first] - 2 * full[first, last]
    free = 1 - field.weight  # of a strength, in its difference from the field
    own = chains.diagonal_within()
    at_first = np.zeros(len(states))
    at_first[first] = 1.0
    change = own[last] + own[first] - 2 * np.where(first == last, own[first], chains.within(at_first)[last])
    rng = np.random.default_rng(settings.seed + 1)
    squares, of_change = np.zeros(len(states)), np.zeros(len(first))
    for _ in range(settings.draws):
        drawn = chains.solve(walk.noise(mode, scale or 1.0, rng), _RESIDUAL)
        given_others = -chains.within(chains.coupling @ drawn)
        apart = free * given_others - (field.mean(drawn) - field.weight * drawn)
        squares += apart**2 / settings.draws  # the mean is known to be 0
        of_change += (apart[last] - apart[first]) ** 2 / settings.draws
    return free**2 * own + squares, free[first] ** 2 * change + of_change
