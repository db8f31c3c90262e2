"""Intervals of many players: one step from the best fit instead of a fit for each resample."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nemo_rpo.ranking import RankSettings, fit, leaderboard
from nemo_rpo.ranking.crowd import crowd_likelihood
from nemo_rpo.ranking.fitting import parameters
from nemo_rpo.ranking.likelihood import Likelihood
from nemo_rpo.ranking.scoring import maximise

from . import games

ETA = [0.95, 0.9, 0.8, 0.65]


def of_settings(settings: RankSettings, seed: int = 0, ties: float = 0.2):
    comparisons, _ = games.drawn(seed, players=6, games=2000, ties=ties, eta=ETA)
    if settings.crowd_bt:
        return comparisons, crowd_likelihood(comparisons, settings)[0]
    return comparisons, Likelihood(comparisons, settings)


KINDS = [
    RankSettings(),
    RankSettings(ties="half"),
    RankSettings(prior=0),
    RankSettings(crowd_bt=True),
    RankSettings(crowd_bt=True, ties="half"),
]


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_the_score_is_the_gradient_and_vanishes_at_the_fit(settings):
    comparisons, likelihood = of_settings(settings)
    counts = likelihood.counts()
    rng = np.random.default_rng(1)
    theta = rng.normal(size=likelihood.size) * 0.5
    score = likelihood.score(theta, counts, likelihood.terms(theta))
    for p in range(likelihood.size):
        step = np.zeros_like(theta)
        step[p] = 1e-5
        up, down = (likelihood.log_posterior(theta + sign * step, counts) for sign in (1, -1))
        assert score[p] == pytest.approx((up - down) / 2e-5, rel=1e-4, abs=1e-3)
    best = parameters(likelihood, fit(comparisons, settings))
    at_best = likelihood.score(best, counts, likelihood.terms(best))
    assert np.abs(at_best).max() < 1e-3 * np.abs(score).max()


def test_a_resample_without_ties_ends():
    """Its log ν has no mode; the steps towards -∞ shrink as 1/n, for thousands of them."""
    settings = RankSettings(crowd_bt=True)
    comparisons, likelihood = of_settings(settings, ties=0.01)
    theta, bounds = parameters(likelihood, fit(comparisons, settings)), crowd_likelihood(comparisons, settings)[1]
    weights = np.where(comparisons.outcome == 0, 0.0, 1.0)
    assert (weights == 0).any()
    found, reached = maximise(likelihood, theta, likelihood.counts(weights), bounds, 1e-4, most=150)
    assert reached and found[-1] < -10


@pytest.mark.parametrize(
    ("settings", "apart"), [(RankSettings(), 0.05), (RankSettings(prior=0, resample="annotator"), 0.15)], ids=str
)
def test_one_step_gives_the_intervals_of_refits(settings, apart):
    comparisons, _ = games.drawn(3, players=12, games=6000, ties=0.1, eta=[0.9] * 30)
    boards = [
        leaderboard(comparisons, RankSettings(**vars(settings) | {"refit_parameters": most, "bootstrap": 200}))
        for most in (1000, 0)
    ]
    exact, stepped = ([(p.low, p.high) for p in sorted(b.players, key=lambda p: p.player)] for b in boards)
    width = np.diff(exact, axis=1)
    assert (np.abs(np.array(exact) - np.array(stepped)) < apart * width).all()


def test_one_step_of_the_crowd_is_near_refits():
    comparisons, _ = games.drawn(4, players=6, games=3000, eta=[0.95, 0.9, 0.7])
    boards = [
        leaderboard(comparisons, RankSettings(crowd_bt=True, refit_parameters=most, bootstrap=25)) for most in (1000, 0)
    ]
    exact, stepped = (np.array([(p.low, p.high) for p in sorted(b.players, key=lambda p: p.player)]) for b in boards)
    assert np.diff(stepped, axis=1).mean() == pytest.approx(np.diff(exact, axis=1).mean(), rel=0.25)


def led_by_position(seed: int, follows: float):
    """Games in which ``follows`` of the labels name whoever was shown first, mostly players with a high number."""
    comparisons, strength = games.drawn(seed, players=8, games=3000, eta=[0.9] * 6)
    rng = np.random.default_rng(seed + 1)
    slot = np.where(rng.random(3000) < np.where(comparisons.first > comparisons.second, 0.85, 0.15), 1, -1)
    outcome = np.where(rng.random(3000) < follows, slot, comparisons.outcome).astype(np.int8)
    return replace(comparisons, slot=slot.astype(np.int8), outcome=outcome), strength


def test_the_score_of_leanings_is_the_gradient():
    comparisons, _ = led_by_position(0, 0.3)
    likelihood, _ = crowd_likelihood(comparisons, RankSettings(crowd_bt=True), slots=True)
    counts, theta = likelihood.counts(), np.random.default_rng(2).normal(size=likelihood.size) * 0.5
    score = likelihood.score(theta, counts, likelihood.terms(theta))
    for p in range(likelihood.size):
        step = np.eye(likelihood.size)[p] * 1e-5
        up, down = (likelihood.log_posterior(theta + sign * step, counts) for sign in (1, -1))
        assert score[p] == pytest.approx((up - down) / 2e-5, rel=1e-4, abs=1e-3)


def test_labels_that_follow_the_position_are_allowed_for():
    comparisons, strength = led_by_position(5, 0.4)
    board = leaderboard(comparisons, RankSettings(crowd_bt=True, bootstrap=4))
    assert all(row.leaning > 0.3 for row in board.annotators)
    assert any("lean to what was shown first" in warning for warning in board.warnings)
    blind = leaderboard(replace(comparisons, slot=None), RankSettings(crowd_bt=True, bootstrap=0))

    def likeness(found):
        return np.corrcoef([p.score for p in sorted(found.players, key=lambda p: p.player)], strength)[0, 1]

    assert 1 - likeness(board) < 0.4 * (1 - likeness(blind))
    honest = leaderboard(led_by_position(6, 0.0)[0], RankSettings(crowd_bt=True, bootstrap=0))
    assert all(row.leaning is None for row in honest.annotators) and not honest.warnings
