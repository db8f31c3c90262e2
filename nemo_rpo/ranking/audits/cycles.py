"""Cycles of majorities: a over b, b over c, c over a, which no scores can follow. Shapes: N players, E pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nemo_rpo.ranking.comparisons import Comparisons
from nemo_rpo.ranking.pair_table import PairTable

_EXACT = 12  # players up to which the least weight is exact: 2^N sets of them
_MOST = 200  # players up to which orders are searched
_TABLES = 200  # drawn for the p-value
_SWEEPS = 50


@dataclass(frozen=True)
class Cycles:
    """Attributes:
    winner: whoever beats every other by majority, if all pairs met and somebody does (Condorcet's winner).
    circles: groups of players within which majorities lead from each to each other, the largest first.
    triples: cycles of three.
    weight: votes by which the majorities that no order can keep exceed their minorities, in the order that keeps most;
        ``None`` of too many players. exact: whether no order does better, which is known of few players.
    of_margins: that of all the majorities' margins, from 0 to 1.
    p_value: share of tables drawn from the fitted strengths that have as much weight: small where the cycles are no
        chance.
    """

    winner: str | None
    circles: list[list[str]]
    triples: int
    weight: float | None
    exact: bool
    of_margins: float | None
    p_value: float | None


def find_cycles(table: PairTable, comparisons: Comparisons, scores: np.ndarray, seed: int) -> Cycles:
    """The cycles among the majorities; ``scores`` [N] are the fitted log-strengths."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names, size = comparisons.players, len(comparisons.players)
    ahead = table.won > table.lost
    beats = np.where(ahead, table.low, table.high), np.where(ahead, table.high, table.low)
    decided = table.won != table.lost
    graph = coo_array((np.ones(int(decided.sum())), (beats[0][decided], beats[1][decided])), shape=(size, size)).tocsr()
    _, part = connected_components(graph, directed=True, connection="strong")
    members = [np.flatnonzero(part == p) for p in np.flatnonzero(np.bincount(part) > 1)]
    circles = sorted(([names[i] for i in group] for group in members), key=len, reverse=True)
    wins = np.bincount(beats[0][decided], minlength=size)
    winner = names[int(wins.argmax())] if wins.max(initial=0) == size - 1 else None
    triples = round(float((graph @ graph).multiply(graph.T).sum()) / 3)
    weight = of_margins = p_value = None
    if size <= _MOST:
        margin = table.won - table.lost
        weight = _least(_margins(table, margin, size), scores)
        total = float(np.abs(margin).sum())
        of_margins = weight / total if total else 0.0
        p_value = _chance(table, scores, weight, seed) if weight else 1.0
    return Cycles(winner, circles, triples, weight, size <= _EXACT, of_margins, p_value)


def _margins(table: PairTable, margin: np.ndarray, size: int) -> np.ndarray:
    """[N, N], votes of row over column where that is the majority, else 0."""
    found = np.zeros((size, size))
    found[table.low, table.high] = margin.clip(0)
    found[table.high, table.low] = (-margin).clip(0)
    return found


def _least(margins: np.ndarray, scores: np.ndarray) -> float:
    """The least sum of margins against an order: exact of few players, of more by moves from the orders of
    scores and of votes won."""
    if len(margins) <= _EXACT:
        return _exact(margins)
    orders = (np.argsort(-by, kind="stable") for by in (scores, (margins - margins.T).sum(1)))
    return min(_searched(margins, order) for order in orders)


def _exact(margins: np.ndarray) -> float:
    """By the sets of players that may stand first: cost[set] = min over its last player i of cost[set - i] + what i
    won against the rest of the set."""
    n = len(margins)
    sets = np.arange(2**n)
    holds = (sets[:, None] >> np.arange(n)) & 1
    against = holds @ margins.T  # [set, i], votes of i over members of the set
    cost = np.full(2**n, np.inf)
    cost[0] = 0.0
    size = holds.sum(1)
    for k in range(1, n + 1):
        of_size = sets[size == k]
        for i in range(n):
            with_i = of_size[(of_size >> i) & 1 == 1]
            without = with_i ^ (1 << i)
            cost[with_i] = np.minimum(cost[with_i], cost[without] + against[without, i])
    return float(cost[-1])


def _searched(margins: np.ndarray, order: np.ndarray) -> float:
    """Players are moved to where they fit best, one after another, until nobody moves."""
    order = order.copy()
    for _ in range(_SWEEPS):
        moved = False
        for player in order.copy():
            rest = order[order != player]
            # Standing at place p costs what those after it won against it, and what it won against those before.
            lost, won = margins[rest, player], margins[player, rest]
            cost = np.r_[0.0, np.cumsum(won)] + np.r_[np.cumsum(lost[::-1])[::-1], 0.0]
            now, best = int(np.flatnonzero(order == player)[0]), int(cost.argmin())
            if cost[best] < cost[now]:
                order, moved = np.insert(rest, best, player), True
        if not moved:
            break
    ranked = margins[np.ix_(order, order)]
    return float(np.tril(ranked).sum())


def _chance(table: PairTable, scores: np.ndarray, weight: float, seed: int) -> float:
    """Ties stay ties."""
    rng, games = np.random.default_rng(seed), (table.won + table.lost).astype(np.int64)
    share = 1 / (1 + np.exp(scores[table.high] - scores[table.low]))
    as_much = 0
    for _ in range(_TABLES):
        margin = 2.0 * rng.binomial(games, share) - games
        as_much += _least(_margins(table, margin, len(scores)), scores) >= weight
    return (1 + as_much) / (1 + _TABLES)
