"""From comparisons with times to states: a player in a slice of time in which it played.

Between the slices of two states of a player nothing was observed, and a Gaussian walk over g slices is one step of
variance g τ²: slices without games need no state. Shapes: n comparisons, N players, m states, c cells, k steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nemo_rpo.counting import counted
from nemo_rpo.errors import ConfigError, DataError
from nemo_rpo.ranking.comparisons import Comparisons
from nemo_rpo.ranking.over_time.over_time_settings import OverTimeSettings

_MOST = 100_000  # slices: more are a width in the wrong unit


@dataclass(frozen=True)
class States:
    """Sorted by player, then slice.

    Attributes:
        begin, width: of the first slice and of every slice, seconds. slices: T.
        player, slice: int64 [m]; an unchanged player has one state, in slice 0.
        step: int64 [k], states whose successor is the same player's. gap: float64 [k], slices between the two.
        low, high: int64 [c], the two states of a cell. counts: float64 [c, 3], wins of low, wins of high, ties.
    """

    begin: float
    width: float
    slices: int
    player: np.ndarray
    slice: np.ndarray
    step: np.ndarray
    gap: np.ndarray
    low: np.ndarray
    high: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.player)

    def ends(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Players that have states, and the first and the last state of each, int64."""
        players, first = np.unique(self.player, return_index=True)
        return players, first, np.r_[first[1:], len(self.player)] - 1

    def times(self, slices: np.ndarray) -> np.ndarray:
        """The middles of slices, seconds."""
        return self.begin + (slices + 0.5) * self.width


def states_of(comparisons: Comparisons, settings: OverTimeSettings) -> States:
    """Raises :class:`ConfigError` for a width that cuts the span into too many slices, or an unknown player."""
    begin, width, at = _slices(comparisons, settings)
    slices = int(at.max()) + 1
    still = _places(comparisons.players, settings.unchanged)

    def key(player: np.ndarray) -> np.ndarray:
        return player * slices + np.where(still[player], 0, at)

    first, second = key(comparisons.first), key(comparisons.second)
    known, state = np.unique(np.concatenate([first, second]), return_inverse=True)
    first, second = np.split(state, 2)
    player, of_slice = known // slices, known % slices
    step = np.flatnonzero(player[1:] == player[:-1])
    low, high = np.minimum(first, second), np.maximum(first, second)
    cells, cell = np.unique(low * len(known) + high, return_inverse=True)
    outcome = np.where(first == low, comparisons.outcome, -comparisons.outcome)
    code = 3 * cell + np.array([2, 0, 1])[outcome]  # a tie, low won, high won
    counts = np.bincount(code, minlength=3 * len(cells)).reshape(-1, 3).astype(np.float64)
    gap = (of_slice[step + 1] - of_slice[step]).astype(np.float64)
    return States(
        begin, width, slices, player, of_slice, step, gap, cells // len(known), cells % len(known), counts
    )  # fmt: skip


def _slices(comparisons: Comparisons, settings: OverTimeSettings) -> tuple[float, float, np.ndarray]:
    time = comparisons.time
    if time is None:
        raise DataError("no row says when it was judged; name the field, --time-key")
    begin, span = float(time.min()), float(np.ptp(time))
    width = settings.seconds() if settings.width else span / settings.slices or 1.0
    if span / width > _MOST:
        raise ConfigError(
            f"--slice {settings.width} cuts the span into {counted(int(span / width), 'slice')}, and there may be "
            f"{_MOST:,}; choose a wider one"
        )
    at = np.floor((time - begin) / width).astype(np.int64)
    if not settings.width:
        at = np.minimum(at, settings.slices - 1)  # the last moment belongs to the last slice
    return begin, width, at


def _places(players: list[str], names: list[str]) -> np.ndarray:
    unknown = [name for name in names if name not in players]
    if unknown:
        raise ConfigError(f"--unchanged {unknown[0]}: no such player was compared")
    return np.isin(np.array(players, dtype=object), names)
