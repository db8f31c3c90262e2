"""The list itself: order, intervals, ranks, and what stands beside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nemo_rpo.errors import ConfigError, DataError
from nemo_rpo.ranking import RankSettings, leaderboard
from nemo_rpo.ranking.others import elo, trueskill

from . import games


def test_players_stand_in_order_with_their_record():
    board = leaderboard(games.of_wins(games.WINS), RankSettings(prior=0, bootstrap=0))
    assert [player.player for player in board.players] == ["p000", "p001", "p002", "p003"]
    first = board.players[0]
    assert (first.rank, first.wins, first.losses, first.ties) == (1, 17, 7, 0)
    assert first.rating == pytest.approx(1000 + 400 * games.LOG_STRENGTHS[0] / np.log(10))
    assert first.low is None and first.rank_low is None and first.elo is None


def test_intervals_hold_the_truth_as_often_as_they_say():
    inside = []
    for seed in range(25):
        comparisons, strength = games.drawn(seed, players=8, games=1200)
        board = leaderboard(comparisons, RankSettings(prior=0, bootstrap=80, confidence=0.9, seed=seed))
        truth = dict(zip(comparisons.players, strength, strict=True))
        inside += [player.low <= truth[player.player] <= player.high for player in board.players]
    assert 0.82 < np.mean(inside) < 0.97


def test_intervals_are_the_same_for_the_same_seed_and_hold_the_score():
    comparisons, _ = games.drawn(0, players=6, games=600, ties=0.2)
    boards = [leaderboard(comparisons, RankSettings(bootstrap=30, seed=seed)) for seed in (1, 1, 2)]
    assert boards[0] == boards[1] != boards[2]
    for player in boards[0].players:
        assert player.low < player.score < player.high
        assert 1 <= player.rank_low <= player.rank <= player.rank_high <= 6


def test_drawing_annotators_widens_intervals_where_they_differ():
    rng = np.random.default_rng(0)
    annotator = np.repeat(np.arange(20), 50)
    # Each annotator always takes the same side.
    outcome = np.where(rng.random(20) < 0.5, 1, -1)[annotator]
    comparisons = games.games_of(np.zeros(1000), np.ones(1000), outcome, players=2, annotator=annotator)

    def width(resample):
        player = leaderboard(comparisons, RankSettings(bootstrap=60, resample=resample)).players[0]
        return player.high - player.low

    assert width("annotator") > 4 * width("comparison")


@pytest.mark.parametrize("most", [0, 400], ids=["one step", "refitted"])
@pytest.mark.parametrize("games_each", [1, 8])
def test_who_was_hardly_compared_or_never_lost_is_not_known_for_certain(games_each, most):
    """Every resample of such comparisons is the same, and the bootstrap alone would have an interval of width 0."""
    n = [0] * games_each
    comparisons = games.games_of(n, [1] * games_each, [1] * games_each, players=2)
    for settings in (RankSettings(), RankSettings(ties="half"), RankSettings(crowd_bt=True)):
        if settings.crowd_bt:
            comparisons = replace(comparisons, annotators=["ann"])
        board = leaderboard(comparisons, replace(settings, refit_parameters=most))
        for player in board.players:
            # Under the prior's one win and one loss at curvature ½, a game or eight more of at most ¼ each.
            assert 2 * 1.96 * (0.5 + 0.25 * games_each) ** -0.5 * 0.8 < player.high - player.low < 8
            if games_each == 1:
                assert (player.rank_low, player.rank_high) == (1, 2)


def test_who_tied_and_never_lost_is_not_known_for_certain():
    """No resample has a loss."""
    comparisons = games.games_of([0] * 7, [1] * 7, [1] + [0] * 6, players=2)
    for settings in (RankSettings(), RankSettings(ties="half")):
        for player in leaderboard(comparisons, settings).players:
            assert player.low < 0 < player.high and (player.rank_low, player.rank_high) == (1, 2)


def test_intervals_of_who_met_others_once_hold_the_truth():
    inside, settings = [], RankSettings(bootstrap=60, refit_parameters=0)
    for seed in range(25):
        comparisons, strength = games.drawn(seed, players=6, games=300)
        once = comparisons.first * 0 + 6
        rng = np.random.default_rng(seed)
        newcomer = rng.normal()
        won = rng.random() < 1 / (1 + np.exp(strength[0] - newcomer))
        more = replace(
            comparisons,
            players=[*comparisons.players, "z"],
            first=np.append(comparisons.first, once[0]),
            second=np.append(comparisons.second, 0),
            outcome=np.append(comparisons.outcome, 1 if won else -1).astype(np.int8),
            annotator=np.append(comparisons.annotator, 0),
        )
        player = next(p for p in leaderboard(more, replace(settings, seed=seed)).players if p.player == "z")
        inside.append(player.low <= newcomer - strength.mean() <= player.high)
    assert np.mean(inside) > 0.8


def test_one_annotator_cannot_be_drawn_anew():
    comparisons = games.games_of([0, 1], [1, 0], [1, 1], players=2)
    with pytest.raises(DataError, match="drawing annotators anew shows nothing"):
        leaderboard(comparisons, RankSettings(resample="annotator"))


def test_ties_that_are_left_out_are_not_counted():
    comparisons = games.games_of([0, 1, 0], [1, 0, 1], [1, 1, 0], players=2)
    board = leaderboard(comparisons, RankSettings(ties="drop", bootstrap=0))
    assert (board.comparisons, board.ties_left_out) == (2, 1)
    board = leaderboard(comparisons, RankSettings(bootstrap=0))
    assert (board.comparisons, board.ties_left_out) == (3, 0)


def test_a_resample_without_a_maximum_is_an_error():
    comparisons = games.games_of([0, 0, 1], [1, 1, 0], [1, 1, 1], players=2)
    with pytest.raises(DataError, match="a resample cannot be ranked"):
        leaderboard(comparisons, RankSettings(prior=0, bootstrap=50))
    assert len(leaderboard(comparisons, RankSettings(bootstrap=50)).players) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (RankSettings(prior=-1), "--prior must be 0 or more"),
        (RankSettings(confidence=1), "--confidence must be between 0 and 1"),
        (RankSettings(bootstrap=-1), "--bootstrap must be 0 or more"),
        (RankSettings(crowd_bt=True, prior=0), "--crowd-bt needs a prior"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        leaderboard(games.of_wins(games.WINS), settings)


def test_trueskill_gives_the_published_values():
    pytest.importorskip("trueskill", reason="TrueSkill needs trueskill: pip install 'nemo-rpo[rank]'")
    mu, sigma = trueskill(games.games_of([0], [1], [1], players=2))
    assert mu == pytest.approx([29.39583, 20.60417], abs=5e-6)
    assert sigma == pytest.approx([7.17148, 7.17148], abs=5e-6)
    swapped, _ = trueskill(games.games_of([1], [0], [-1], players=2))
    assert swapped == pytest.approx(mu)


def test_elo_by_its_formula():
    pytest.importorskip("evalica", reason="compared with evalica: pip install 'nemo-rpo[rank]'")
    found = elo(games.games_of([0, 0, 1], [1, 1, 2], [1, 0, -1], players=4))
    rating, change = np.full(4, 1000.0), 4.0
    for a, b, score in ((0, 1, 1.0), (0, 1, 0.5), (1, 2, 0.0)):
        expected = 1 / (1 + 10 ** ((rating[b] - rating[a]) / 400))
        rating[a], rating[b] = rating[a] + change * (score - expected), rating[b] - change * (score - expected)
    assert found[:3] == pytest.approx(rating[:3]) and np.isnan(found[3])
    beside = leaderboard(games.of_wins(games.WINS), RankSettings(bootstrap=0), ["elo"]).players
    assert beside[0].elo > 1000 and beside[0].trueskill is None


def test_players_that_never_met_are_named_part_by_part(caplog):
    apart = games.games_of([0, 0, 2, 4], [1, 1, 3, 1], [1, -1, 1, 1], players=5)
    board = leaderboard(apart, RankSettings(bootstrap=0))
    names = apart.players
    assert board.parts == [[names[0], names[1], names[4]], [names[2], names[3]]]
    assert "the players fall into 2 groups that never met each other" in caplog.text
    caplog.clear()
    together = games.games_of([0, 2, 4, 1], [1, 3, 1, 2], [1, 1, 1, 0], players=5)
    assert len(leaderboard(together, RankSettings(bootstrap=0)).parts) == 1 and not caplog.text
    dropped = leaderboard(together, RankSettings(bootstrap=0, ties="drop"))
    assert [len(part) for part in dropped.parts] == [3, 2], "a tie that is dropped brings nobody together"


def test_parts_of_a_long_chain():
    chain = np.random.default_rng(0).permutation(500)
    comparisons = games.games_of(chain[:-1], chain[1:], np.ones(499), players=500)
    assert len(leaderboard(comparisons, RankSettings(bootstrap=0)).parts) == 1
