"""Plans: they reach the interval they promise, with fewer judgements than all pairs alike take."""

from __future__ import annotations

import numpy as np
import pytest

from nemo_rpo.errors import ConfigError
from nemo_rpo.ranking import RankSettings
from nemo_rpo.ranking.next_judgements import plan_judgements

from . import games

SETTINGS = RankSettings(tolerance=1e-8)


def test_a_plan_reaches_the_width_and_counts_add_up():
    comparisons, _ = games.drawn(0, players=8, games=300, ties=0.15)
    plan = plan_judgements(comparisons, SETTINGS, 0.6)
    assert plan.reached and plan.course[0].judgements == 0 and plan.course[-1].judgements == plan.judgements
    assert plan.judgements == sum(pair.judgements for pair in plan.pairs) < plan.round_robin
    assert plan.course[-1].widest <= 0.6 < plan.course[-2].widest
    assert [row.round_robin for row in plan.course] == sorted((row.round_robin for row in plan.course), reverse=True)
    some = plan_judgements(comparisons, SETTINGS, 0.6, most=50)
    assert some.judgements == 50 and not some.reached and some.to_dict()["reached"] is False
    assert plan_judgements(comparisons, SETTINGS, 5.0).judgements == 0


def test_the_round_robins_number_is_that_of_its_information():
    """Equal players: after n of each pair a score less the mean has variance (N-1)/N · 4/(N n)."""
    players, n = 6, 40
    low, high = np.triu_indices(players, 1)
    outcome = np.where(np.arange(n) % 2, 1, -1)[None].repeat(len(low), 0).ravel()
    comparisons = games.games_of(np.repeat(low, n), np.repeat(high, n), outcome, players)
    settings = RankSettings(prior=0, tolerance=1e-12)
    z, width = 1.959964, 0.4

    def judgements_of_a_pair() -> float:
        return (players - 1) / players * 4 / players / (width / (2 * z)) ** 2

    plan = plan_judgements(comparisons, settings, width)
    assert plan.round_robin == pytest.approx(len(low) * (judgements_of_a_pair() - n), abs=len(low))
    assert plan.judgements == pytest.approx(plan.round_robin, rel=0.05), "equals are planned alike"


def test_planned_worlds_take_fewer_judgements_than_a_round_robin():
    taken = {"planned": [], "alike": []}
    low, high = np.triu_indices(8, 1)
    for seed in range(4):
        strength = 1.5 * np.random.default_rng(seed).normal(size=8)
        for way, spent in taken.items():
            rng = np.random.default_rng(100 + seed)
            first, second, outcome = np.repeat(low, 2), np.repeat(high, 2), np.zeros(0, int)
            while True:
                fresh = slice(len(outcome), None)
                p = 1 / (1 + np.exp(strength[second[fresh]] - strength[first[fresh]]))
                outcome = np.r_[outcome, np.where(rng.random(len(p)) < p, 1, -1)]
                plan = plan_judgements(games.games_of(first, second, outcome, 8), SETTINGS, 1.2)
                if not plan.judgements:
                    break
                pairs = np.stack((low, high), 1)
                if way == "planned":
                    every = [(int(pair.a[1:]), int(pair.b[1:])) for pair in plan.pairs for _ in range(pair.judgements)]
                    pairs = rng.permutation(np.array(every))[: max(20, len(every) // 4)]
                first, second = np.r_[first, pairs[:, 0]], np.r_[second, pairs[:, 1]]
            spent.append(len(outcome))
    planned, alike = (np.array(spent) for spent in taken.values())
    assert (planned < alike).sum() >= 3 and planned.mean() < 0.85 * alike.mean()


@pytest.mark.parametrize(
    ("width", "most", "settings", "message"),
    [
        (0.0, None, SETTINGS, "--interval must be above 0"),
        (1.0, 0, SETTINGS, "--judgements 1 or more"),
        (1e-4, None, SETTINGS, "takes more than 10,000,000 judgements; choose a wider one"),
        (1.0, None, RankSettings(crowd_bt=True), "leave out --crowd-bt"),
    ],
)
def test_what_cannot_be_planned_is_refused(width, most, settings, message):
    with pytest.raises(ConfigError, match=message):
        plan_judgements(games.drawn(0, players=4, games=50)[0], settings, width, most)
