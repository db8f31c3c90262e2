"""Who plays whom, in the order in which Newman's iteration visits them. Shapes: N players, E pairs that met, h = 2E."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nemo_rpo.errors import DataError


@dataclass(frozen=True)
class Results:
    """What came of the games, by ordered pair (i, j) of players that met, h of them.

    Attributes:
        credit: [h], wins of i over j, plus half their ties.
        against: [h], the same of j over i.
        ties: [h].
    """

    credit: np.ndarray
    against: np.ndarray
    ties: np.ndarray


class Schedule:
    """The pairs that met, grouped by player, and the players in classes of which no two met.

    Newman's iteration must update one player after another, as with all at once two players would swap strengths for
    ever. Players who never met do not enter each other's update, so a class of them goes in one vectorised step that is
    exactly the update of one after another. The classes are a greedy colouring: at most (most opponents + 1) of them.

    Attributes:
        players: N.
        here, there: int64 [h], players i and j of every ordered pair, sorted by class of i and then i.
        classes: of each class, its slice of the ordered pairs, its players, and where each of them begins in the slice.
    """

    def __init__(self, first: np.ndarray, second: np.ndarray, players: int) -> None:
        self.players = players
        low, high = np.minimum(first, second), np.maximum(first, second)
        pairs, self._pair = np.unique(low * players + high, return_inverse=True)
        self._first_is_low = first == low
        low, high = pairs // players, pairs % players
        here, there = np.concatenate([low, high]), np.concatenate([high, low])
        colour = _colours(here, there, players)
        order = np.lexsort((here, colour[here]))
        self.here, self.there = here[order], there[order]
        # Where the two ordered pairs of each pair that met have gone to.
        self._order, self._met = order, len(pairs)
        self.classes = list(_classes(self.here, colour))

    def results(self, first: np.ndarray, second: np.ndarray, ties: np.ndarray) -> Results:
        """Results from every game's wins of the first player, of the second, and ties, float [n] each."""
        forward, met = self._first_is_low, self._met

        def total(of_low: np.ndarray) -> np.ndarray:
            return np.bincount(self._pair, weights=of_low, minlength=met)

        tied = total(ties)
        low = total(np.where(forward, first, second)) + tied / 2
        high = total(np.where(forward, second, first)) + tied / 2
        return Results(
            np.concatenate([low, high])[self._order],
            np.concatenate([high, low])[self._order],
            np.concatenate([tied, tied])[self._order],
        )

    def check_connected(self, results: Results, names: list[str]) -> None:
        """Raises :class:`DataError` unless a chain of wins or ties leads from every player to every other."""
        won = results.credit > 0
        beats, beaten = self.here[won], self.there[won]
        for source, target, words in ((beats, beaten, "{1} to {0}"), (beaten, beats, "{0} to {1}")):
            reached = _reached(source, target, self.players)
            if not reached.all():
                lost, start = names[int(np.argmin(reached))], names[0]
                way = words.format(f"'{lost}'", f"'{start}'")
                raise DataError(
                    f"maximum likelihood does not exist: no chain of wins leads from {way}; give a prior, --prior 1 say"
                )


def connected_parts(first: np.ndarray, second: np.ndarray, players: int) -> list[np.ndarray]:
    """The players in parts of which no two ever met, indices each, the largest part first."""
    part, before = np.arange(players), None  # the lowest player that each is known to be connected with
    while before is None or (part != before).any():
        before = part.copy()
        np.minimum.at(part, first, before[second])
        np.minimum.at(part, second, before[first])
        part = part[part]
    return sorted((np.flatnonzero(part == lowest) for lowest in np.unique(part)), key=len, reverse=True)


def _reached(source: np.ndarray, target: np.ndarray, players: int) -> np.ndarray:
    """Which players a walk along the edges from player 0 comes to, bool [N]."""
    reached = np.zeros(players, dtype=bool)
    reached[0] = True
    known = 0
    while known < (known := int(reached.sum())):
        reached[target[reached[source]]] = True
    return reached


def _colours(here: np.ndarray, there: np.ndarray, players: int) -> np.ndarray:
    """A colour for every player, int64 [N], different from those of all opponents; most opponents first."""
    by_player = np.argsort(here, kind="stable")
    opponents = np.bincount(here, minlength=players)
    groups = np.split(there[by_player], np.cumsum(opponents)[:-1])
    colour = np.full(players, -1)
    for player in np.argsort(-opponents, kind="stable"):
        taken = colour[groups[player]]
        free = np.ones(len(taken) + 1, dtype=bool)
        free[taken[(taken >= 0) & (taken < len(free))]] = False
        colour[player] = int(np.argmax(free))
    return colour


def _classes(here: np.ndarray, colour: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    bounds = np.flatnonzero(np.diff(colour[here])) + 1
    for start, end in zip(np.r_[0, bounds], np.r_[bounds, len(here)], strict=True):
        players, begins = np.unique(here[start:end], return_index=True)
        yield slice(start, end), players, begins
