"""The audit of a leaderboard, and of scores that are linear in features of the players."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nemo_rpo.errors import DataError, missing_extra
from nemo_rpo.ranking.audits.cycles import Cycles, cycles
from nemo_rpo.ranking.audits.linear_rule import leximax_copeland, linear_strengths
from nemo_rpo.ranking.audits.violations import Violations, violations
from nemo_rpo.ranking.comparisons import Comparisons
from nemo_rpo.ranking.fitting import fit
from nemo_rpo.ranking.pair_table import pair_table
from nemo_rpo.ranking.ranking_settings import RankSettings


@dataclass(frozen=True)
class LinearAudit:
    """Scores linear in features: the likeliest ones and what they violate, and the rule that keeps the axioms.

    Attributes:
        features: names. weights: θ of the likeliest. players: by its scores, best first. violations: its.
        rule_players, rule_weights, rule_violations: of leximax Copeland subject to Pareto.
        pareto: whether any linear scores keep every unanimous pair.
    """

    features: list[str]
    weights: list[float]
    players: list[str]
    violations: Violations
    rule_players: list[str]
    rule_weights: list[float]
    rule_violations: Violations
    pareto: bool


@dataclass(frozen=True)
class Audit:
    """What the leaderboard violates, the cycles, and with features the same of linear scores."""

    pairs: int
    violations: Violations
    cycles: Cycles
    linear: LinearAudit | None

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)


def audit(
    comparisons: Comparisons,
    settings: RankSettings | None = None,
    features: Mapping[str, Sequence[float]] | None = None,
    names: Sequence[str] = (),
) -> Audit:
    """Audits the plain leaderboard.

    Args:
        features: numbers of every player; names: what they are called.

    Raises:
        DataError: a player without features, or see :func:`nemo_rpo.ranking.fitting.fit`.
        MissingExtraError: scipy is not installed.
    """
    try:
        import scipy  # noqa: F401
    except ImportError as exc:
        raise missing_extra("scipy", "rank") from exc
    settings = settings or RankSettings()
    table, players = pair_table(comparisons), comparisons.players
    scores = fit(comparisons, settings).strengths.log_strength
    linear = None if features is None else _linear(comparisons, settings, features, names)
    return Audit(
        len(table.low),
        violations(table, players, scores),
        cycles(table, comparisons, scores, settings.seed),
        linear,
    )


def _linear(
    comparisons: Comparisons, settings: RankSettings, features: Mapping[str, Sequence[float]], names: Sequence[str]
) -> LinearAudit:
    players, table = comparisons.players, pair_table(comparisons)
    missing = [player for player in players if player not in features]
    if missing:
        raise DataError(f"player '{missing[0]}' has no row of features; there are {len(features)} rows")
    design = np.array([features[player] for player in players], dtype=np.float64)
    theta = linear_strengths(table, design, settings.prior)
    rule = leximax_copeland(table, design)
    scores, of_rule = design @ theta, design @ rule.weights
    order = np.lexsort((np.arange(len(players)), -scores))
    return LinearAudit(
        list(names),
        theta.tolist(),
        [players[i] for i in order],
        violations(table, players, scores),
        [players[i] for i in rule.order],
        rule.weights.tolist(),
        violations(table, players, of_rule),
        rule.pareto,
    )
