"""Games with a known answer."""

from __future__ import annotations

import numpy as np

from nemo_rpo.ranking import Comparisons

# Wins of row over column, and their strengths as the literature's implementations agree on them.
WINS = np.array([[0, 6, 3, 8], [2, 0, 5, 4], [4, 1, 0, 7], [1, 3, 2, 0]])
LOG_STRENGTHS = [0.67128029, 0.10553454, 0.09156059, -0.86837542]
MAP_LOG_STRENGTHS = [0.616328, 0.089105, 0.081895, -0.809987]


def of_wins(wins: np.ndarray) -> Comparisons:
    """A comparison for each win."""
    first, second = np.nonzero(wins)
    games = wins[first, second]
    first, second = np.repeat(first, games), np.repeat(second, games)
    return games_of(first, second, np.ones(len(first)), players=len(wins))


def games_of(first, second, outcome, players: int, annotator=None) -> Comparisons:
    annotator = np.zeros(len(first), dtype=np.int64) if annotator is None else np.asarray(annotator)
    return Comparisons(
        [f"p{i:03d}" for i in range(players)],
        np.asarray(first, dtype=np.int64),
        np.asarray(second, dtype=np.int64),
        np.asarray(outcome, dtype=np.int8),
        [f"w{k:03d}" for k in range(int(annotator.max(initial=0)) + 1)],
        annotator,
    )


def drawn(seed: int, players: int, games: int, ties: float = 0.0, eta=None) -> tuple[Comparisons, np.ndarray]:
    """Random games between players of strengths N(0, 1), told by annotators of reliability ``eta``."""
    rng = np.random.default_rng(seed)
    strength = rng.normal(size=players)
    strength -= strength.mean()
    first = rng.integers(players, size=games)
    second = (first + rng.integers(1, players, size=games)) % players
    first_won = rng.random(games) < 1 / (1 + np.exp(strength[second] - strength[first]))
    annotator = np.zeros(games, dtype=np.int64)
    if eta is not None:
        annotator = rng.integers(len(eta), size=games)
        first_won ^= rng.random(games) > np.asarray(eta)[annotator]
    outcome = np.where(rng.random(games) < ties, 0, np.where(first_won, 1, -1))
    return games_of(first, second, outcome, players, annotator), strength
