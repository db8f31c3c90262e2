"""Strengths over time against the static table, an independent optimiser, planted truths, and their own estimates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nemo_rpo.errors import ConfigError, DataError
from nemo_rpo.ranking import ComparisonFormat, Comparisons, RankSettings, fit, read_comparisons
from nemo_rpo.ranking.over_time.history import History, ranks_over_time
from nemo_rpo.ranking.over_time.over_time_settings import OverTimeSettings

from . import games

optimize = pytest.importorskip("scipy.optimize", reason="strengths over time need scipy: pip install 'nemo-rpo[rank]'")


def timed(seed: int = 1, players: int = 6, count: int = 800, ties: float = 0.2) -> Comparisons:
    comparisons, _ = games.drawn(seed, players, count, ties)
    return replace(comparisons, time=np.random.default_rng(seed).random(count) * 100)


def walking(seed: int, walk: float, players: int = 8, slices: int = 20, count: int = 3000):
    """Comparisons in slices of width 1, and the strengths [players, slices] behind them."""
    rng = np.random.default_rng(seed)
    steps = walk * rng.normal(size=(players, slices))
    steps[:, 0] = rng.normal(size=players)
    strength = np.cumsum(steps, 1)
    at, first = np.sort(rng.integers(slices, size=count)), rng.integers(players, size=count)
    second = (first + rng.integers(1, players, size=count)) % players
    won = rng.random(count) < 1 / (1 + np.exp(strength[second, at] - strength[first, at]))
    comparisons = games.games_of(first, second, np.where(won, 1, -1), players)
    return replace(comparisons, time=at + 0.5), strength


@pytest.mark.parametrize("ties", ["davidson", "half", "drop"])
@pytest.mark.parametrize("walk", [0.0, 3e-5])
def test_an_infinite_penalty_is_the_static_table(ties, walk):
    comparisons, settings = timed(), RankSettings(ties=ties, tolerance=1e-12)
    static = fit(comparisons, settings).strengths
    history = ranks_over_time(comparisons, settings, OverTimeSettings(walk=walk))
    assert history.tie_strength == pytest.approx(static.tie_strength, abs=1e-6)
    for player in history.players:
        at = comparisons.players.index(player.player)
        assert player.strength == pytest.approx([static.log_strength[at]] * len(player.strength), abs=1e-6)
        assert player.score == pytest.approx(static.log_strength[at], abs=1e-6)


def test_the_mode_is_that_of_an_optimiser_on_the_whole_grid():
    """All slices of all players, those without games too, and none of the sparse algebra."""
    comparisons, _ = walking(0, 0.3, players=3, slices=5, count=18)
    slices, tau = 5, 0.4
    at = comparisons.time.astype(int)
    seen = np.zeros((3, slices), dtype=bool)
    seen[comparisons.first, at] = seen[comparisons.second, at] = True
    assert not seen.all(), "a slice without games is what the states leave out"
    share = seen / seen.sum(1, keepdims=True)

    def cost(flat: np.ndarray) -> float:
        s = flat.reshape(3, slices)
        d = (s[comparisons.first, at] - s[comparisons.second, at]) * comparisons.outcome
        prior = (share * (np.logaddexp(0, s) + np.logaddexp(0, -s))).sum()
        return np.logaddexp(0, -d).sum() + prior + (np.diff(s) ** 2).sum() / (2 * tau**2)

    found = optimize.minimize(cost, np.zeros(3 * slices), options={"gtol": 1e-8}).x.reshape(3, slices)
    history = ranks_over_time(comparisons, RankSettings(), OverTimeSettings(width="1", walk=tau))
    for player in history.players:
        row = found[comparisons.players.index(player.player)]
        at_slices = np.array(player.time) - history.begin
        assert player.strength == pytest.approx(row[at_slices.astype(int)], abs=1e-4)


def test_estimates_for_large_tables_are_those_of_the_dense_matrix():
    comparisons, _ = walking(3, 0.15)
    exact = ranks_over_time(comparisons, RankSettings(), OverTimeSettings(width="1"))
    settings = OverTimeSettings(width="1", exact_states=0, draws=40, probes=8)
    estimated = ranks_over_time(comparisons, RankSettings(), settings)
    assert estimated.evidence == pytest.approx(exact.evidence, abs=1.5) and exact.evidence > 10
    assert estimated.walk == pytest.approx(exact.walk, rel=0.2)
    fixed = ranks_over_time(comparisons, RankSettings(), replace(settings, walk=exact.walk))
    for one, other in zip(exact.players, fixed.players, strict=True):
        assert one.player == other.player and one.score == pytest.approx(other.score, abs=1e-4)
        assert other.high - other.low == pytest.approx(one.high - one.low, rel=0.15)
        assert other.change_high - other.change_low == pytest.approx(one.change_high - one.change_low, rel=0.2)


def inside(history: History, strength: np.ndarray) -> list[bool]:
    """Whether intervals hold the strength against the field's."""
    places = history.begin + np.arange(strength.shape[1])
    field = np.mean([np.interp(places, player.time, player.strength) for player in history.players], 0)
    found = []
    for player in history.players:
        at = np.round(np.array(player.time) - history.begin).astype(int)
        true = (strength - strength.mean(0))[int(player.player[1:]), at] + field[at]
        found += list((np.array(player.strength_low) <= true) & (true <= np.array(player.strength_high)))
    return found


def test_the_walk_of_a_world_is_found_and_intervals_hold_its_strengths():
    walks, held = [], []
    for seed in range(8):
        comparisons, strength = walking(seed, 0.2)
        history = ranks_over_time(comparisons, RankSettings(), OverTimeSettings(width="1"))
        assert history.evidence > 3
        walks.append(history.walk)
        history = replace(history, begin=history.begin + 0.5)
        held += inside(history, strength)
    assert 0.13 < np.mean(walks) < 0.26
    assert 0.9 < np.mean(held) < 0.99


def test_a_world_that_stands_still_is_said_to():
    factors = [
        ranks_over_time(walking(seed, 0.0)[0], RankSettings(), OverTimeSettings(width="1")).evidence
        for seed in range(8)
    ]
    assert max(factors) < 3


def test_who_has_got_worse_is_named_and_an_unchanged_player_is_the_measure():
    rng = np.random.default_rng(0)
    count, slices = 6000, 20
    at = rng.integers(slices, size=count)
    strength = np.zeros((4, slices))
    strength[1] = -np.linspace(0, 1.5, slices)
    first = rng.integers(4, size=count)
    second = (first + rng.integers(1, 4, size=count)) % 4
    won = rng.random(count) < 1 / (1 + np.exp(strength[second, at] - strength[first, at]))
    comparisons = replace(games.games_of(first, second, np.where(won, 1, -1), 4), time=at + 0.5)
    history = ranks_over_time(comparisons, RankSettings(), OverTimeSettings(width="1", unchanged=["p000"]))
    moved = {player.player: player for player in history.players}
    assert {name: player.moved for name, player in moved.items()} == {
        "p000": "",
        "p001": "worse",
        "p002": "",
        "p003": "",
    }
    assert moved["p000"].change == 0 and len(moved["p000"].strength) == 1
    assert moved["p001"].change_low < -1.5 < moved["p001"].change_high
    assert history.to_dict()["players"][-1]["moved"] == "worse"


@pytest.mark.parametrize(
    ("settings", "over_time", "message"),
    [
        (RankSettings(), OverTimeSettings(width="7 days"), "--slice must be a width above 0"),
        (RankSettings(), OverTimeSettings(width="0d"), "--slice must be a width above 0"),
        (RankSettings(), OverTimeSettings(width=".0001"), "there may be 100,000; choose a wider one"),
        (RankSettings(), OverTimeSettings(walk=-1), "--walk must be 0 or more"),
        (RankSettings(), OverTimeSettings(unchanged=["nobody"]), "--unchanged nobody: no such player"),
        (RankSettings(prior=0), OverTimeSettings(), "--over-time needs a prior"),
        (RankSettings(crowd_bt=True), OverTimeSettings(), "nemo-rpo annotators shows whose reliability changes"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, over_time, message):
    with pytest.raises(ConfigError, match=message):
        ranks_over_time(timed(), settings, over_time)


def test_times_are_read_as_dates_and_as_numbers(tmp_path):
    path = tmp_path / "battles.csv"
    path.write_text("model_a,model_b,winner,day\nx,y,a,2026-01-05\ny,x,a,2026-01-06T12:00:00\nx,y,b,1767571200000\n")
    keys = ComparisonFormat(time_key="day")
    assert read_comparisons(path, keys).time.tolist() == [1767571200.0, 1767700800.0, 1767571200.0]
    assert read_comparisons(path).time is None
    path.write_text("model_a,model_b,winner,day\nx,y,a,\n")
    with pytest.raises(DataError, match=r"battles\.csv:\d+: field 'day'"):
        read_comparisons(path, keys)
    assert timed().take(np.array([3, 1])).time.tolist() == timed().time[[3, 1]].tolist()
