"""Intervals of many players: one step from the best fit instead of a fit for each resample."""

from __future__ import annotations

import numpy as np
import pytest

from nemo_rpo.ranking import RankSettings, fit, leaderboard
from nemo_rpo.ranking.crowd import crowd_likelihood
from nemo_rpo.ranking.fitting import parameters
from nemo_rpo.ranking.likelihood import Likelihood

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


@pytest.mark.parametrize("settings", [RankSettings(), RankSettings(prior=0, resample="annotator")], ids=str)
def test_one_step_gives_the_intervals_of_refits(settings):
    comparisons, _ = games.drawn(3, players=12, games=6000, ties=0.1, eta=[0.9] * 30)
    boards = [
        leaderboard(comparisons, RankSettings(**vars(settings) | {"refit_parameters": most, "bootstrap": 200}))
        for most in (1000, 0)
    ]
    exact, stepped = ([(p.low, p.high) for p in sorted(b.players, key=lambda p: p.player)] for b in boards)
    width = np.diff(exact, axis=1)
    assert (np.abs(np.array(exact) - np.array(stepped)) < 0.05 * width).all()


def test_one_step_of_the_crowd_is_near_refits():
    comparisons, _ = games.drawn(4, players=8, games=8000, eta=[0.95, 0.9, 0.8, 0.7, 0.6] * 4)
    boards = [
        leaderboard(comparisons, RankSettings(crowd_bt=True, refit_parameters=most, bootstrap=60)) for most in (1000, 0)
    ]
    exact, stepped = (np.array([(p.low, p.high) for p in sorted(b.players, key=lambda p: p.player)]) for b in boards)
    assert np.diff(stepped, axis=1).mean() == pytest.approx(np.diff(exact, axis=1).mean(), rel=0.25)
