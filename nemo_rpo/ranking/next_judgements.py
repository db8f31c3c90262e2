r"""Which pairs to have judged next, so that the fewest judgements make every score's interval as narrow as is wanted.

A judgement of (i, j) adds κ d dᵀ to the information, d = e_i - e_j, with κ the variance of its outcome under the fit:
¼ between equals, little where the winner is known beforehand. V being the covariance of scores less their mean, one
judgement takes κ (V d)(V d)ᵀ / (1 + κ dᵀ V d) from it. The next pair is the one that takes most from the variances that
are still too large; nothing is spent on players who are known well enough. Shapes: N players.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from nemo_rpo.errors import ConfigError
from nemo_rpo.ranking.comparisons import Comparisons
from nemo_rpo.ranking.fitting import fit
from nemo_rpo.ranking.pair_table import pair_table
from nemo_rpo.ranking.ranking_settings import RankSettings

_MOST_PLAYERS = 1000  # the covariance is dense, and is looked through for every step of the plan
_MOST = 10_000_000  # judgements: the width is out of reach
_SHARE = 100  # of what is planned: the judgements that go to one pair at a time
_ROWS = 8  # of the table


@dataclass(frozen=True)
class PairToJudge:
    """``judgements`` of ``a`` against ``b``."""

    a: str
    b: str
    judgements: int


@dataclass(frozen=True)
class Milestone:
    """After so many more judgements by the plan: the widest and the mean interval; and the widest after as many that
    are spread evenly over all pairs.
    """

    judgements: int
    widest: float
    mean: float
    round_robin: float


@dataclass(frozen=True)
class JudgementPlan:
    """Attributes:
    width: that no interval of a score, less the mean of all, is to exceed. confidence: of the intervals.
    judgements: that the plan takes. round_robin: that all pairs alike would take. reached: False if ``most`` ran out.
    pairs: most judgements first. course: on the way.
    """

    width: float
    confidence: float
    judgements: int
    round_robin: int
    reached: bool
    pairs: list[PairToJudge]
    course: list[Milestone]

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)


def next_judgements(
    comparisons: Comparisons, settings: RankSettings, width: float, most: int | None = None
) -> JudgementPlan:
    """Plans from the fit of ``settings``; strengths change as judgements come in, so plan anew after a part of them.

    Args:
        width: wanted, of intervals of ``settings.confidence``. most: judgements to plan, if fewer reach no further.

    Raises:
        ConfigError: a width that is not above 0 or out of reach, too many players, or reliabilities asked for.
        DataError: see :func:`nemo_rpo.ranking.fitting.fit`.
    """
    players = len(comparisons.players)
    if not 0 < width < float("inf") or (most is not None and most < 1):
        raise ConfigError("--interval must be above 0, and --judgements 1 or more")
    if settings.crowd_bt:
        raise ConfigError("a plan takes judges at their word: leave out --crowd-bt")
    if players > _MOST_PLAYERS:
        raise ConfigError(
            f"--interval plans for up to {_MOST_PLAYERS:,} players, and there are {players:,}: leave some out"
        )
    z = NormalDist().inv_cdf((1 + settings.confidence) / 2)
    kappa, covariance = _known(comparisons, settings)
    each = _equally(covariance, kappa, width, z)
    if each is None:
        raise ConfigError(f"--interval {width:g} takes more than {_MOST:,} judgements; choose a wider one")
    planned, course = _planned(covariance, kappa, (width / (2 * z)) ** 2, most or _MOST)
    total = int(planned.sum() / 2)
    low, high = np.nonzero(np.triu(planned))
    order = np.argsort(-planned[low, high], kind="stable")
    names = comparisons.players
    return JudgementPlan(
        width,
        settings.confidence,
        total,
        each,
        bool(2 * z * np.sqrt(course[-1][1].max()) <= width * (1 + 1e-9)),
        [PairToJudge(names[low[e]], names[high[e]], int(planned[low[e], high[e]])) for e in order],
        [_milestone(spent, variance, covariance, kappa, z) for spent, variance in _some(course)],
    )


def _known(comparisons: Comparisons, settings: RankSettings) -> tuple[np.ndarray, np.ndarray]:
    """κ of every pair [N, N], 0 on the diagonal, and the covariance V [N, N] of what was judged so far."""
    strengths = fit(comparisons, settings).strengths
    s, size = strengths.log_strength, len(comparisons.players)
    half = (s[:, None] - s) / 2
    u, v = np.exp(half), np.exp(-half)
    total = u + v + 2 * strengths.tie_strength
    kappa = (u + v) / (4 * total) - ((u - v) / (2 * total)) ** 2
    np.fill_diagonal(kappa, 0.0)
    table, games = pair_table(comparisons), np.zeros((size, size))
    games[table.low, table.high] = games[table.high, table.low] = table.games
    won = 1 / (1 + np.exp(-s))
    information = _laplacian(games * kappa) + np.diag(2 * settings.prior * won * (1 - won))
    return kappa, _centred(information)


def _laplacian(weights: np.ndarray) -> np.ndarray:
    return np.diag(weights.sum(1)) - weights


def _centred(information: np.ndarray) -> np.ndarray:
    found = np.linalg.inv(information + 1e-9 / len(information))  # without a prior the common level is unknown
    found = found - found.mean(0)
    return found - found.mean(1, keepdims=True)


def _equally(covariance: np.ndarray, kappa: np.ndarray, width: float, z: float) -> int | None:
    """The fewest judgements, all pairs alike, after which no interval exceeds ``width``; ``None``: too many."""
    low, high = 0, _MOST
    if _evenly(high, covariance, kappa, z) > width:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _evenly(middle, covariance, kappa, z) <= width else (middle + 1, high)
    return low


def _evenly(judgements: float, covariance: np.ndarray, kappa: np.ndarray, z: float) -> float:
    """The widest interval after so many judgements of all pairs alike."""
    pairs = len(kappa) * (len(kappa) - 1) / 2
    added = judgements / pairs * _laplacian(kappa)
    found = np.linalg.solve(np.eye(len(kappa)) + covariance @ added, covariance)
    return float(2 * z * np.sqrt(np.diag(found).max()))


def _planned(
    covariance: np.ndarray, kappa: np.ndarray, wanted: float, most: int
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Judgements of every pair [N, N], symmetric, and the variances [N] on the way."""
    covariance, spent = covariance.copy(), 0
    planned = np.zeros(kappa.shape, dtype=np.int64)
    course = [(0, np.diag(covariance).copy())]
    while spent < most and (unmet := np.diag(covariance) > wanted).any():
        part = covariance[:, unmet]
        inner = part @ part.T
        taken, apart = (np.diag(x)[:, None] + np.diag(x) - 2 * x for x in (inner, covariance))
        i, j = np.unravel_index(np.argmax(kappa * taken / (1 + kappa * apart)), kappa.shape)
        games = min(max(1, spent // _SHARE), most - spent)
        column = covariance[:, i] - covariance[:, j]
        covariance -= np.outer(column, column) * (games * kappa[i, j] / (1 + games * kappa[i, j] * apart[i, j]))
        planned[i, j] += games
        planned[j, i] += games
        spent += games
        course.append((spent, np.diag(covariance).copy()))
    return planned, course


def _some(course: list[tuple[int, np.ndarray]]) -> list[tuple[int, np.ndarray]]:
    """Rows at about equal distances, the last one among them."""
    spent = np.array([row[0] for row in course])
    places = np.searchsorted(spent, np.linspace(0, spent[-1], _ROWS)).clip(max=len(course) - 1)
    return [course[place] for place in np.unique(places)]


def _milestone(spent: int, variance: np.ndarray, covariance: np.ndarray, kappa: np.ndarray, z: float) -> Milestone:
    widths = 2 * z * np.sqrt(variance)
    return Milestone(spent, float(widths.max()), float(widths.mean()), _evenly(spent, covariance, kappa, z))
