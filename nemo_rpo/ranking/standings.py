"""The players in order of strength, with intervals, and the annotators in order of reliability."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nemo_rpo.errors import printable
from nemo_rpo.ranking import others
from nemo_rpo.ranking.comparisons import Comparisons
from nemo_rpo.ranking.fitting import Fit, bootstrap, fit
from nemo_rpo.ranking.ranking_settings import RankSettings
from nemo_rpo.ranking.schedule import connected_parts

logger = logging.getLogger(__name__)

COMPARE = ("elo", "trueskill")
_LEANS = 0.2  # logits: at ½, .55 of the labels
_SHOWN = 5  # parts, and players of a part, that a warning names


@dataclass(frozen=True)
class Standing:
    """One player.

    Attributes:
        score: log-strength s. low, high: its interval, ``None`` without a bootstrap.
        rank_low, rank_high: interval of the rank.
        rating: the score on Elo's scale, 1000 + 400 s / ln 10.
        elo, trueskill, trueskill_sigma: for comparison, where asked for.
    """

    rank: int
    player: str
    score: float
    low: float | None
    high: float | None
    rank_low: int | None
    rank_high: int | None
    rating: float
    wins: int
    losses: int
    ties: int
    elo: float | None = None
    trueskill: float | None = None
    trueskill_sigma: float | None = None


@dataclass(frozen=True)
class AnnotatorStanding:
    """One annotator: signed labels, reliability η and its standard error for known strengths; and the leaning to what
    was shown first, in logits, where the file has the order and the evidence asks for leanings.
    """

    annotator: str
    labels: int
    eta: float
    standard_error: float
    leaning: float | None = None


@dataclass(frozen=True)
class Leaderboard:
    """A ranking of all players.

    Attributes:
        comparisons: their number, without ``ties_left_out``, those that ``ties: drop`` leaves out.
        tie_strength: ν of the ties. converged: whether the fit did.
        players: best first.
        annotators: worst first (with ``crowd_bt``).
        warnings: of the annotators' estimates.
        parts: the players in parts of which no two ever met, the largest first; between parts the order is the prior's.
    """

    comparisons: int
    ties_left_out: int
    tie_strength: float
    converged: bool
    players: list[Standing]
    annotators: list[AnnotatorStanding]
    parts: list[list[str]]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The leaderboard as plain data, for JSON."""
        return asdict(self)


def leaderboard(
    comparisons: Comparisons,
    settings: RankSettings | None = None,
    compare: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> Leaderboard:
    """Ranks the players.

    Args:
        compare: any of :data:`COMPARE`, to stand beside the scores.
        progress: called with the number of resamples done.

    Raises:
        ConfigError: settings out of range.
        DataError: see :func:`nemo_rpo.ranking.fitting.fit`.
        MissingExtraError: a library to compare with is not installed.
    """
    settings = settings or RankSettings()
    settings.check()
    beside = _beside(comparisons, compare)
    best = fit(comparisons, settings)
    draws = bootstrap(comparisons, settings, best, progress) if settings.bootstrap else None
    left_out = int((comparisons.outcome == 0).sum()) if settings.ties == "drop" else 0
    return Leaderboard(
        len(comparisons) - left_out,
        left_out,
        best.strengths.tie_strength,
        best.strengths.converged,
        _standings(comparisons, settings, best, draws, beside),
        _annotators(comparisons, best),
        _parts(comparisons, settings),
        _warnings(best),
    )


def _parts(comparisons: Comparisons, settings: RankSettings) -> list[list[str]]:
    """See :class:`Leaderboard`; warns where there are several."""
    met = comparisons.take(comparisons.outcome != 0) if settings.ties == "drop" else comparisons
    found = connected_parts(met.first, met.second, len(met.players))
    parts = [[comparisons.players[i] for i in members] for members in found]
    if len(parts) > 1:
        shown = "; ".join(_some(part) for part in parts[:_SHOWN]) + (" …" if len(parts) > _SHOWN else "")
        logger.warning(
            "the players fall into %d groups that never met each other, and nothing but the prior orders one group "
            "against another; rank each by itself, or compare players of different groups: %s",
            len(parts),
            shown,
        )
    return parts


def _some(part: list[str]) -> str:
    return ", ".join(printable(name, cell=True) for name in part[:_SHOWN]) + (
        f" and {len(part) - _SHOWN:,} more" if len(part) > _SHOWN else ""
    )


def _standings(
    comparisons: Comparisons,
    settings: RankSettings,
    best: Fit,
    draws: np.ndarray | None,
    beside: dict[str, np.ndarray],
) -> list[Standing]:
    score = best.strengths.log_strength
    wins, losses, ties = comparisons.tally()
    tail = (1 - settings.confidence) / 2
    edges = (tail, 1 - tail)
    interval = None if draws is None else np.quantile(draws, edges, axis=0)
    # A rank is a whole number: the interval ends at ranks that occurred.
    ranks = None if draws is None else np.quantile(_ranks(draws), edges, axis=0, method="closest_observation")
    rank = _ranks(score[None])[0]
    return [
        Standing(
            rank=int(rank[i]),
            player=comparisons.players[i],
            score=float(score[i]),
            low=None if interval is None else float(interval[0, i]),
            high=None if interval is None else float(interval[1, i]),
            rank_low=None if ranks is None else int(ranks[0, i]),
            rank_high=None if ranks is None else int(ranks[1, i]),
            rating=1000 + 400 * float(score[i]) / math.log(10),
            wins=int(wins[i]),
            losses=int(losses[i]),
            ties=int(ties[i]),
            **{name: float(values[i]) for name, values in beside.items()},
        )
        for i in np.lexsort((np.arange(len(score)), -score))
    ]


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Ranks from 1 of every row, int64 [B, N]; players of equal score stand in the order of their names."""
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(1, scores.shape[1] + 1)[None], axis=1)
    return ranks


def _annotators(comparisons: Comparisons, best: Fit) -> list[AnnotatorStanding]:
    if best.reliabilities is None:
        return []
    known = best.reliabilities
    leaning = [None] * len(known.eta) if known.leaning is None else known.leaning.tolist()
    columns = (known.labels.tolist(), known.eta.tolist(), known.standard_error.tolist(), leaning)
    rows = [AnnotatorStanding(*row) for row in zip(comparisons.annotators, *columns, strict=True)]
    return sorted(rows, key=lambda row: (row.eta, row.annotator))


def _warnings(best: Fit) -> list[str]:
    """Situations in which reliabilities look like estimates and are not."""
    if best.reliabilities is None:
        return []
    import torch

    from nemo_rpo.em import EMSettings, warn_all

    known = best.reliabilities
    found = warn_all(torch.from_numpy(known.eta), torch.from_numpy(known.labels), EMSettings().eta_init)
    texts = [warned.text for warned in found if warned.guard != "stuck_at_start"]  # of training, not of a full fit
    if known.leaning is not None:
        mean = float(np.average(known.leaning, weights=known.labels))
        if abs(mean) > _LEANS:
            side = "first" if mean > 0 else "second"
            texts.append(f"annotators lean to what was shown {side} (by {abs(mean):.2f} logits); it is allowed for")
    return texts


def _beside(comparisons: Comparisons, compare: Sequence[str]) -> dict[str, np.ndarray]:
    beside = {}
    if "elo" in compare:
        beside["elo"] = others.elo(comparisons)
    if "trueskill" in compare:
        beside["trueskill"], beside["trueskill_sigma"] = others.trueskill(comparisons)
    return beside
