"""Strengths against published values, other implementations and the likelihood itself."""

from __future__ import annotations

import numpy as np
import pytest

from nemo_rpo.errors import DataError
from nemo_rpo.ranking import RankSettings, Schedule, fit
from nemo_rpo.ranking.fitting import plain_results

from . import games

MLE = RankSettings(prior=0, tolerance=1e-12)

# dustalov/evalica, simple.csv: (left, right, outcome for left).
SIMPLE = [
    (0, 1, 0), (0, 2, -1), (0, 2, 0), (0, 4, 0), (1, 0, 1), (1, 2, 0), (1, 2, 0), (1, 3, 0),
    (2, 4, 0), (3, 0, 1), (3, 1, 1), (3, 2, 1), (3, 4, 0), (3, 4, 0), (4, 0, 1), (4, 3, 1),
]  # fmt: skip


def simple():
    return games.games_of(*zip(*SIMPLE, strict=True), players=5)


def test_newmans_values():
    found = fit(games.of_wins(games.WINS), MLE).strengths
    assert found.log_strength == pytest.approx(games.LOG_STRENGTHS, abs=1e-8)
    assert found.converged and found.iterations <= 20, "Zermelo's iteration takes 51 for fewer digits"


def test_values_under_the_prior():
    found = fit(games.of_wins(games.WINS), RankSettings(prior=1, tolerance=1e-12)).strengths
    assert found.log_strength == pytest.approx(games.MAP_LOG_STRENGTHS, abs=1e-6)
    assert found.iterations <= 20


def test_ties_as_davidson_models_them():
    found = fit(simple(), MLE).strengths
    assert found.tie_strength == pytest.approx(3.460966, abs=5e-5)
    scores = np.array([0.017973592758, 0.480240024530, 0.481419034280, 12.805770244756, 13.036744742368])
    expected = np.log(scores) - np.log(scores).mean()
    # The published scores were iterated to a step of 1e-6.
    assert found.log_strength == pytest.approx(expected, abs=5e-5)


def log_likelihood(comparisons, s, nu):
    up, down = s[comparisons.first], s[comparisons.second]
    middle = np.log(2 * nu) + (up + down) / 2 if nu else np.full(len(up), -np.inf)
    total = np.logaddexp(np.logaddexp(up, down), middle)
    said = np.select([comparisons.outcome > 0, comparisons.outcome < 0], [up, down], middle)
    return (said - total).sum()


@pytest.mark.parametrize("prior", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("ties", [0.0, 0.3])
def test_no_nearby_strengths_are_more_probable(prior, ties):
    comparisons, _ = games.drawn(0, players=12, games=900, ties=ties)
    found = fit(comparisons, RankSettings(prior=prior, tolerance=1e-12)).strengths

    def objective(s, nu):
        return log_likelihood(comparisons, s, nu) - prior * (np.logaddexp(0, s) + np.logaddexp(0, -s)).sum()

    s, nu, step = found.log_strength, found.tie_strength, 1e-4
    for i in range(len(s)):
        nudge = np.eye(len(s))[i] * step
        gradient = (objective(s + nudge, nu) - objective(s - nudge, nu)) / (2 * step)
        assert abs(gradient) < 1e-5
    if ties:
        assert abs(objective(s, nu + step) - objective(s, nu - step)) / (2 * step) < 1e-4


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_choix(seed):
    choix = pytest.importorskip("choix")
    comparisons, _ = games.drawn(seed, players=40, games=4000)
    won = comparisons.outcome > 0
    better = np.where(won, comparisons.first, comparisons.second)
    worse = np.where(won, comparisons.second, comparisons.first)
    expected = choix.opt_pairwise(40, list(zip(better, worse, strict=True)), tol=1e-12)
    assert fit(comparisons, MLE).strengths.log_strength == pytest.approx(expected - expected.mean(), abs=1e-6)
    again = choix.ilsr_pairwise(40, list(zip(better, worse, strict=True)), tol=1e-12)
    assert fit(comparisons, MLE).strengths.log_strength == pytest.approx(again - again.mean(), abs=1e-8)


@pytest.mark.parametrize("ties", [0.0, 0.25])
def test_agrees_with_evalica(ties):
    evalica = pytest.importorskip("evalica", reason="compared with evalica: pip install 'nemo-rpo[rank]'")
    comparisons, _ = games.drawn(5, players=15, games=2000, ties=ties)
    winner = {1: evalica.Winner.X, -1: evalica.Winner.Y, 0: evalica.Winner.Draw}
    winners = [winner[int(outcome)] for outcome in comparisons.outcome]
    rate = evalica.newman if ties else evalica.bradley_terry
    scores = rate(
        comparisons.first.tolist(), comparisons.second.tolist(), winners, tolerance=1e-12, limit=10_000
    ).scores
    expected = np.log(scores.reindex(range(15)).to_numpy())
    assert fit(comparisons, MLE).strengths.log_strength == pytest.approx(expected - expected.mean(), abs=1e-8)


@pytest.mark.parametrize("ties", [0.0, 0.25])
def test_agrees_with_arena_rank(ties):
    reason = "compared with arena-rank, which brings jax: pip install arena-rank into an environment of its own"
    models = pytest.importorskip("arena_rank.models.bradley_terry", reason=reason)
    data, pandas = (pytest.importorskip(name) for name in ("arena_rank.utils.data_utils", "pandas"))
    comparisons, _ = games.drawn(6, players=15, games=3000, ties=ties)
    names = np.array(comparisons.players)
    said = np.array(["tie", "model_a", "model_b"])[comparisons.outcome]
    rows = {"model_a": names[comparisons.first], "model_b": names[comparisons.second], "winner": said}
    battles = data.PairDataset.from_pandas(pandas.DataFrame(rows))
    rated = models.BradleyTerry(15, scale=1.0, base=np.e, init_rating=0.0).compute_ratings_and_cis(battles)
    assert rated["competitors"] == comparisons.players
    found = fit(comparisons, RankSettings(prior=0, ties="half", tolerance=1e-12)).strengths
    expected = np.asarray(rated["ratings"])
    assert found.log_strength == pytest.approx(expected - expected.mean(), abs=1e-5)


def test_half_wins_and_dropped_ties():
    comparisons, _ = games.drawn(3, players=6, games=400, ties=0.3)
    half = fit(comparisons, RankSettings(prior=0, ties="half", tolerance=1e-12)).strengths
    tied = comparisons.outcome == 0
    doubled = comparisons.take(np.repeat(np.arange(len(tied)), 2))
    flipped = np.where(np.arange(len(doubled)) % 2, 1, -1)
    doubled = games.games_of(
        doubled.first, doubled.second, np.where(doubled.outcome == 0, flipped, doubled.outcome), players=6
    )
    assert half.log_strength == pytest.approx(fit(doubled, MLE).strengths.log_strength, abs=1e-9)
    dropped = fit(comparisons, RankSettings(prior=0, ties="drop", tolerance=1e-12)).strengths
    assert dropped.log_strength == pytest.approx(fit(comparisons.take(~tied), MLE).strengths.log_strength, abs=1e-12)
    assert dropped.tie_strength == half.tie_strength == 0


def test_players_in_one_class_never_met():
    comparisons, _ = games.drawn(1, players=200, games=1500)
    schedule = Schedule(comparisons.first, comparisons.second, 200)
    of_player = np.full(200, -1)
    for number, (games_of_class, players, begins) in enumerate(schedule.classes):
        of_player[players] = number
        assert (schedule.here[games_of_class][begins] == players).all()
    assert (of_player[schedule.here] != of_player[schedule.there]).all() and (of_player >= 0).all()


def test_visiting_in_classes_is_visiting_one_after_another():
    """A sweep against the formula of the docstring, player by player in the same order."""
    comparisons, _ = games.drawn(2, players=30, games=300)
    schedule = Schedule(comparisons.first, comparisons.second, 30)
    settings = RankSettings(prior=1, max_iterations=1)
    results = plain_results(comparisons, schedule, settings)
    wins = np.zeros((30, 30))
    wins[schedule.here, schedule.there] = results.credit
    pi = np.ones(30)
    for _, players, _ in schedule.classes:
        for i in players:
            gained = (wins[i] * pi / (pi[i] + pi)).sum() + 1 / (pi[i] + 1)
            given = (wins[:, i] / (pi[i] + pi)).sum() + 1 / (pi[i] + 1)
            pi[i] = gained / given
    expected = np.log(pi) - np.log(pi).mean()
    found = fit(comparisons, settings).strengths.log_strength
    assert found - found.mean() == pytest.approx(expected, abs=1e-12)


def test_without_a_chain_of_wins_there_is_no_maximum():
    # p000 and p001 beat each other; p002 only ever loses.
    comparisons = games.games_of([0, 1, 0], [1, 0, 2], [1, 1, 1], players=3)
    with pytest.raises(DataError, match=r"no chain of wins leads from 'p002' to 'p000'; give a prior, --prior 1 say"):
        fit(comparisons, MLE)
    found = fit(comparisons, RankSettings(prior=1)).strengths
    assert found.converged and found.log_strength[2] < found.log_strength[:2].min()
    assert np.isfinite(found.log_strength).all()


def test_two_islands_need_a_prior():
    comparisons = games.games_of([0, 1, 2, 3], [1, 0, 3, 2], [1, 1, 1, 1], players=4)
    with pytest.raises(DataError, match="maximum likelihood does not exist"):
        fit(comparisons, MLE)
    assert fit(comparisons).strengths.log_strength == pytest.approx(np.zeros(4), abs=1e-9)


def test_only_ties_say_nothing():
    with pytest.raises(DataError, match="nobody won"):
        fit(games.games_of([0, 1], [1, 2], [0, 0], players=3))


def test_a_fit_that_is_cut_short_says_so(caplog):
    found = fit(games.of_wins(games.WINS), RankSettings(prior=0, max_iterations=2)).strengths
    assert not found.converged and "still moving" in caplog.text
