"""Axioms: the worked counter-example of maximum likelihood, and cycles against all orders there are."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from nemo_rpo.errors import ConfigError, DataError
from nemo_rpo.ranking import Comparisons, RankSettings
from nemo_rpo.ranking.audits.audit import audit_table
from nemo_rpo.ranking.audits.cycles import find_cycles
from nemo_rpo.ranking.audits.linear_rule import leximax_copeland, linear_strengths
from nemo_rpo.ranking.pair_table import table_of

from . import games

pytest.importorskip("scipy", reason="audits need scipy: pip install 'nemo-rpo[rank]'")

# L. Ge et al.: two thirds of the voters rank one way, one third the other, and all agree that c' is better than c.
FEATURES = {
    "a": (2, 1), "b": (1, 1), "c": (0, 0), "a'": (1.99, 1), "b'": (0.99, 1), "c'": (-0.01, 0.005)
}  # fmt: skip
VOTERS = [["a", "a'", "b", "b'", "c'", "c"]] * 2 + [["c'", "c", "b'", "b", "a'", "a"]]


def counter_example() -> Comparisons:
    players = sorted(FEATURES)
    rows = [
        (players.index(better), players.index(worse), voter)
        for voter, ranking in enumerate(VOTERS)
        for i, better in enumerate(ranking)
        for worse in ranking[i + 1 :]
    ]
    first, second, voter = np.array(rows).T
    return Comparisons(players, first, second, np.ones(len(rows), np.int8), ["v0", "v1", "v2"], voter)


def test_the_worked_counter_example():
    comparisons = counter_example()
    table, design = table_of(comparisons), np.array([FEATURES[name] for name in comparisons.players], float)
    theta = linear_strengths(table, design, prior=0)
    assert theta == pytest.approx([0.46427, 0.00721], abs=5e-6)
    at = comparisons.players.index
    assert design[at("c'")] @ theta == pytest.approx(-0.004607, abs=5e-7) and design[at("c")] @ theta == 0
    rule = leximax_copeland(table, design)
    assert [comparisons.players[i] for i in rule.order] == VOTERS[0] and rule.pareto
    scores = design @ rule.weights
    assert (np.diff(scores[rule.order]) < 0).all()


def test_the_audit_names_what_the_likeliest_linear_scores_reverse():
    found = audit_table(counter_example(), RankSettings(), FEATURES, ["x", "y"])
    [reversed_] = found.linear.violations.reversed_unanimous
    assert (reversed_.winner, reversed_.loser, reversed_.wins, reversed_.comparisons) == ("c'", "c", 3, 3)
    assert found.linear.players == ["a", "a'", "b", "b'", "c", "c'"]
    assert found.linear.rule_players == VOTERS[0]
    assert found.linear.rule_violations.reversed_majorities == []
    # Free scores have no reason to reverse anybody here.
    assert found.violations.majorities == 15 and found.violations.reversed_majorities == []
    assert found.cycles.winner == "a" and found.cycles.circles == []


def test_linear_strengths_are_a_logistic_regression():
    linear_model = pytest.importorskip(
        "sklearn.linear_model", reason="compared with scikit-learn: pip install scikit-learn"
    )
    comparisons, _ = games.drawn(0, players=12, games=500)
    design = np.random.default_rng(1).normal(size=(12, 3))
    rows = (design[comparisons.first] - design[comparisons.second]) * 1.0
    model = linear_model.LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000)
    expected = model.fit(rows, comparisons.outcome > 0).coef_[0]
    assert linear_strengths(table_of(comparisons), design, prior=0) == pytest.approx(expected, abs=1e-4)


def test_free_features_give_copelands_order_and_equal_ones_say_so():
    comparisons, _ = games.drawn(2, players=7, games=20_000)
    table = table_of(comparisons)
    rule = leximax_copeland(table, np.eye(7))
    beaten = np.bincount(np.where(table.won > table.lost, table.low, table.high), minlength=7)
    assert rule.order.tolist() == np.argsort(-beaten, kind="stable").tolist() and rule.pareto
    # One number a player, the wrong way round: unanimous pairs cannot be kept.
    pair = table_of(games.games_of([0, 0, 1, 1], [1, 1, 2, 2], [1, 1, 1, 1], players=3))
    assert leximax_copeland(pair, np.array([[0.0], [1.0], [0.5]])).pareto is False


def test_features_that_separate_have_no_likeliest_weights():
    comparisons = games.games_of([0, 0], [1, 1], [1, 1], players=2)
    with pytest.raises(DataError, match="give a prior"):
        linear_strengths(table_of(comparisons), np.array([[1.0], [0.0]]), prior=0)
    with pytest.raises(DataError, match="player 'p001' has no row of features"):
        audit_table(comparisons, RankSettings(), {"p000": [1.0]}, ["x"])
    with pytest.raises(ConfigError, match="the linear rule takes up to 200 players"):
        leximax_copeland(table_of(comparisons), np.zeros((201, 1)))


def best_order(margin: np.ndarray) -> float:
    """Votes against the best of all orders; margin [N, N] is skew-symmetric."""
    return min(
        sum(max(0, margin[j, i]) for k, i in enumerate(order) for j in order[k + 1 :])
        for order in permutations(range(len(margin)))
    )


@pytest.mark.parametrize("exact", [True, False])
def test_the_least_weight_of_cycles_is_that_of_the_best_of_all_orders(exact, monkeypatch):
    from nemo_rpo.ranking.audits import cycles as module

    if not exact:
        monkeypatch.setattr(module, "_EXACT", 0)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        low, high = np.triu_indices(6, 1)
        won = rng.integers(0, 10, len(low))
        outcome = np.where(np.arange(9) < won[:, None], 1, -1).ravel()
        comparisons = games.games_of(np.repeat(low, 9), np.repeat(high, 9), outcome, 6)
        margin = np.zeros((6, 6))
        margin[low, high] = 2 * won.clip(max=9) - 9
        found = find_cycles(table_of(comparisons), comparisons, np.zeros(6), seed=0)
        best = best_order(margin - margin.T)
        assert found.exact == exact
        assert found.weight == best if exact else best <= found.weight <= 1.3 * best + 1


def test_a_planted_circle_is_no_chance_and_noise_is():
    first, second = np.repeat([0, 1, 2, 0, 1, 2], 60), np.repeat([1, 2, 0, 3, 3, 3], 60)
    outcome = np.where(np.arange(60) < 45, 1, -1)[None].repeat(6, 0).ravel()
    comparisons = games.games_of(first, second, outcome, 4)
    found = audit_table(comparisons).cycles
    assert found.circles == [["p000", "p001", "p002"]] and found.triples == 1 and found.winner is None
    assert found.weight == 30 and found.p_value < 0.02
    p_values = [audit_table(games.drawn(seed, players=6, games=300)[0]).cycles.p_value for seed in range(12)]
    assert np.mean(np.array(p_values) < 0.05) <= 0.25
    assert audit_table(games.drawn(0, players=6, games=300)[0]).to_dict()["linear"] is None
