"""A second opinion on a leaderboard: the ranking without the entries of the table that the others contradict."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from nemo_rpo.errors import ConfigError
from nemo_rpo.ranking.comparisons import Comparisons
from nemo_rpo.ranking.fitting import fit
from nemo_rpo.ranking.pair_table import PairTable, table_of
from nemo_rpo.ranking.ranking_settings import RankSettings
from nemo_rpo.ranking.schedule import connected_parts
from nemo_rpo.ranking.second_opinion.decomposition import Structure
from nemo_rpo.ranking.second_opinion.explanations import Explanation, explain

_MEDIAN = NormalDist().inv_cdf(0.75)  # of |z|
_MOST = 2000  # players: the table is dense


@dataclass(frozen=True)
class Distrusted:
    """An entry: player ``a``'s share of the wins against ``b``, as observed and as the other entries have it, and how
    many standard errors lie between.
    """

    a: str
    b: str
    comparisons: int
    observed: float
    believed: float
    z: float


@dataclass(frozen=True)
class SecondOpinion:
    """Attributes:
    scores: log-strength of every player without the distrusted entries. ranks, plain_ranks: with and without trust.
    excess: how much further believed entries lie from strengths than chance has them, 1 where the model fits.
    misfit: the same in log-odds, the mean of what is not chance; bounds are wider by it.
    entries: pairs that met. distrusted: the most contradicted first.
    cut_off: players that too little is left of to be compared with the others.
    shares: float64 [entries, 2], observed and believed, of all entries; not in :meth:`to_dict`.
    contradicted: bool [entries].
    """

    players: list[str]
    scores: list[float]
    ranks: list[int]
    plain_ranks: list[int]
    excess: float
    misfit: float
    entries: int
    distrusted: list[Distrusted]
    cut_off: list[str]
    shares: np.ndarray
    contradicted: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        found = asdict(self)
        del found["shares"], found["contradicted"]
        return found


def second_opinion(
    comparisons: Comparisons, settings: RankSettings | None = None, structure: Structure = "strengths"
) -> SecondOpinion:
    """The ranking with and without the entries that the rest of the table contradicts.

    An entry is distrusted where it lies further from what the believed entries say than the largest of as many honest
    ones would once in twenty tables, the misfit of the believed ones allowed for
    (:mod:`~nemo_rpo.ranking.second_opinion.explanations`). Scores are those of ``settings`` fitted to the comparisons
    of believed entries (``rank2``: the logit of the mean of the row of σ(L)).

    Raises:
        ConfigError: too many players.
        DataError: see :func:`nemo_rpo.ranking.fitting.fit`.
        MissingExtraError: scipy is not installed.
    """
    settings = settings or RankSettings()
    names = comparisons.players
    if len(names) > _MOST:
        raise ConfigError(f"--robust takes up to {_MOST:,} players, and there are {len(names):,}: leave some out")
    table = table_of(comparisons)
    free = len(names) - 1 if structure == "strengths" else 2 * len(names) - 3
    logit, variance = table.logits()
    found = explain(*table[:2], logit, variance, len(names), structure)
    z = (logit - found.believed) / np.sqrt(variance)
    trusted = comparisons.take(~found.corrupted[table.pair])
    scores = _scores(found, trusted, settings)
    plain = fit(comparisons, settings).strengths.log_strength
    main = connected_parts(trusted.first, trusted.second, len(names))[0]
    order = sorted(range(len(names)), key=lambda i: -scores[i])
    ranks, plain_ranks = _ranks(scores), _ranks(plain)
    return SecondOpinion(
        [names[i] for i in order],
        [float(scores[i]) for i in order],
        [int(ranks[i]) for i in order],
        [int(plain_ranks[i]) for i in order],
        _excess(z[~found.corrupted], free),
        found.misfit,
        len(logit),
        _distrusted(names, table, found, z),
        [name for i, name in enumerate(names) if i not in set(main.tolist())],
        np.stack((table.share, 1 / (1 + np.exp(-found.believed))), 1),
        found.corrupted,
    )


def _excess(z: np.ndarray, free: int) -> float:
    """Spread of residuals by their median, at least 1; fitted numbers have taken their share of it."""
    left = max(len(z) - free, 1) / max(len(z), 1)
    return max(1.0, float(np.median(np.abs(z)) / _MEDIAN / np.sqrt(left))) if len(z) else 1.0


def _scores(found: Explanation, trusted: Comparisons, settings: RankSettings) -> np.ndarray:
    if found.table is None:
        return fit(trusted, settings).strengths.log_strength
    share = 1 / (1 + np.exp(-found.table))
    mean = (share.sum(1) - 0.5) / (len(share) - 1)
    return np.log(mean / (1 - mean))


def _ranks(scores: np.ndarray) -> np.ndarray:
    ranks = np.empty(len(scores), dtype=np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    return ranks


def _distrusted(names: list[str], table: PairTable, found: Explanation, z: np.ndarray) -> list[Distrusted]:
    share, games, rows = table.share, table.games, []
    for e in sorted(np.flatnonzero(found.corrupted), key=lambda e: -abs(z[e])):
        believed = 1 / (1 + np.exp(-found.believed[e]))
        rows.append(
            Distrusted(
                names[table.low[e]], names[table.high[e]], int(games[e]), float(share[e]), float(believed), float(z[e])
            )
        )
    return rows
