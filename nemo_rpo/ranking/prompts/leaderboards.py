"""From strengths at prompts to a leaderboard of many prompts. Shapes: n prompts, M players, B resamples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nemo_rpo.ranking.ranking_settings import FEW, RankSettings
from nemo_rpo.ranking.schedule import Schedule
from nemo_rpo.ranking.strengths import Strengths, bradley_terry

_BLOCK = 4096  # prompts at a time: n · M² win rates need not be held


@dataclass(frozen=True)
class PromptBoard:
    """A leaderboard of prompts.

    Attributes:
        name: ``all``, or what the prompts share.
        prompts: their number.
        score: log-strengths s, mean 0, float64 [M].
        low, high: interval over prompts drawn anew, [M]; None of fewer than :data:`FEW` prompts, or without resamples.
        win_rate: [M], how often each beats another model drawn evenly, over the prompts.
    """

    name: str
    prompts: int
    score: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None
    win_rate: np.ndarray


def boards(theta: np.ndarray, topics: Sequence[str | None], settings: RankSettings) -> list[PromptBoard]:
    """The leaderboard of all prompts, and of each topic that is named, in the order of the topics' names.

    Args:
        theta: strengths at each prompt, float64 [n, M].
        topics: of each prompt; None without one.
    """
    named = sorted({topic for topic in topics if topic is not None})
    found = [board("all", theta, settings)]
    of = np.array([named.index(topic) if topic is not None else -1 for topic in topics])
    return found + [board(name, theta[of == place], settings) for place, name in enumerate(named)]


def board(name: str, theta: np.ndarray, settings: RankSettings) -> PromptBoard:
    r"""The Bradley-Terry strengths of battles on prompts drawn evenly from those of ``theta`` [n, M].

    With W_ab the mean over prompts of σ(θ_a(x) - θ_b(x)), s is the maximum of Σ_ab W_ab log σ(s_a - s_b): what a fit to
    endlessly many battles on these prompts would give, every two models meeting equally often (2502.14855, of a
    distribution of prompts). For one prompt it is θ itself. Intervals draw prompts anew (``settings.bootstrap``,
    ``confidence``, ``seed``): they say how far another sample of such prompts would differ, not how well θ is known.
    """
    n, players = theta.shape
    first, second = np.triu_indices(players, 1)
    schedule = Schedule(first, second, players)
    plain = RankSettings(prior=0.0, tolerance=settings.tolerance, max_iterations=settings.max_iterations)
    none = np.zeros(len(first))

    def fitted(weights: np.ndarray, start: Strengths | None) -> tuple[Strengths, np.ndarray]:
        won = _mean_wins(theta, weights, first, second)
        return bradley_terry(schedule, schedule.results(won, 1 - won, none), plain, start), won

    best, won = fitted(np.full(n, 1 / n), None)
    low = high = None
    if settings.bootstrap and n >= FEW:
        rng, draws = np.random.default_rng(settings.seed), []
        for _ in range(settings.bootstrap):
            weights = np.bincount(rng.integers(n, size=n), minlength=n) / n
            draws.append(fitted(weights, best)[0].log_strength)
        tail = (1 - settings.confidence) / 2
        low, high = np.quantile(np.array(draws), [tail, 1 - tail], axis=0)
    rate = np.bincount(first, won, players) + np.bincount(second, 1 - won, players)
    return PromptBoard(name, n, best.log_strength, low, high, rate / (players - 1))


def win_rates(theta: np.ndarray) -> np.ndarray:
    """How often each model beats another one drawn evenly, at each prompt, float64 [n, M].

    >>> win_rates(np.array([[np.log(3.0), 0.0]]))
    array([[0.75, 0.25]])
    """
    players = theta.shape[1]
    found = np.empty_like(theta)
    for start in range(0, len(theta), _BLOCK):
        block = theta[start : start + _BLOCK]
        beats = _sigmoid(block[:, :, None] - block[:, None, :])
        found[start : start + _BLOCK] = (beats.sum(2) - 0.5) / (players - 1)  # against itself it is ½
    return found


def _mean_wins(theta: np.ndarray, weights: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Σ_x weight · σ(θ_a - θ_b) for each pair of players, held inside (0, 1)."""
    found = np.zeros(len(first))
    for start in range(0, len(theta), _BLOCK):
        block = slice(start, start + _BLOCK)
        found += weights[block] @ _sigmoid(theta[block][:, first] - theta[block][:, second])
    return found.clip(1e-12, 1 - 1e-12)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(x / 2))
