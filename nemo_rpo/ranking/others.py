"""Elo and TrueSkill beside it, by the libraries of their field. Both read the comparisons in the order of the file."""

from __future__ import annotations

import numpy as np

from nemo_rpo.errors import missing_extra
from nemo_rpo.ranking.comparisons import Comparisons


def elo(comparisons: Comparisons) -> np.ndarray:
    """Elo ratings [N] by evalica with its defaults (1000 to begin with, scale 400, K 4).

    Raises:
        MissingExtraError: evalica is not installed.
    """
    try:
        from evalica import Winner
        from evalica import elo as rate
    except ImportError as exc:
        raise missing_extra("evalica", "rank") from exc
    winner = {1: Winner.X, -1: Winner.Y, 0: Winner.Draw}
    winners = [winner[outcome] for outcome in comparisons.outcome.tolist()]
    scores = rate(comparisons.first.tolist(), comparisons.second.tolist(), winners).scores
    return scores.reindex(range(len(comparisons.players))).to_numpy()


def trueskill(comparisons: Comparisons) -> tuple[np.ndarray, np.ndarray]:
    """TrueSkill's μ and σ [N] by the package trueskill with its defaults (25 ± 25/3, one in ten games a draw).

    Raises:
        MissingExtraError: trueskill is not installed.
    """
    try:
        import trueskill as package
    except ImportError as exc:
        raise missing_extra("trueskill", "rank") from exc
    environment = package.TrueSkill()
    ratings = [environment.create_rating() for _ in comparisons.players]
    games = zip(comparisons.first.tolist(), comparisons.second.tolist(), comparisons.outcome.tolist(), strict=True)
    for first, second, outcome in games:
        better, worse = (second, first) if outcome < 0 else (first, second)
        ratings[better], ratings[worse] = package.rate_1vs1(
            ratings[better], ratings[worse], drawn=outcome == 0, env=environment
        )
    return np.array([rating.mu for rating in ratings]), np.array([rating.sigma for rating in ratings])
