r"""Several rewards of one response as one.

Rewards of different models have different scales, and what is far above good enough should not make up for what is bad:

* u = log σ(r - r_ref) with r_ref what is good enough for the prompt, the 85 % quantile of the rewards of samples (of
  normal ones mean + 1.036 sd). Their sum over the rewards is log P(good by all): a logical *and*. Monotone, so that one
  reward ranks as before; a constant added to all rewards of a prompt changes nothing.
* the λ-harmonic mean 1 / Σ_i (λ_i / r_i) of positive rewards, Σ λ_i = 1: below their arithmetic mean, near the least.

Sources: Wang et al., "Transforming and Combining Rewards for Aligning LLMs" (2402.00742); "Subject-driven Text-to-Image
Generation via Preference-based RL" (2407.12164) for the second.

Shapes: r rewards of each of n responses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nemo_rpo.errors import DataError

GOOD_ENOUGH = 0.85  # quantile
_FEWEST = 4  # responses to a prompt from which its own quantile is taken, and not that of all prompts together


def good_enough(rewards: Sequence[float], quantile: float = GOOD_ENOUGH) -> float:
    """r_ref of one prompt from the rewards of its samples.

    >>> good_enough([0.0, 1.0, 2.0, 3.0, 4.0], 0.75)
    3.0
    """
    return float(np.quantile(np.asarray(rewards, dtype=np.float64), quantile))


def log_sigmoid_reward(reward: np.ndarray | float, reference: float) -> np.ndarray:
    """u = log σ(r - r_ref), float64, ≤ 0.

    >>> round(float(log_sigmoid_reward(1.0, 2.0)), 10)
    -1.3132616875
    """
    return -np.logaddexp(0.0, reference - np.asarray(reward, dtype=np.float64))


def all_good(rewards: np.ndarray, references: Sequence[float]) -> np.ndarray:
    """log P(good by all): Σ_i u_i, float64 [n], of rewards [r, n] with one reference each.

    >>> all_good(np.array([[0.0, 5.0], [0.0, -5.0]]), [0.0, 0.0]).round(3)
    array([-1.386, -5.013])
    """
    return sum(log_sigmoid_reward(row, reference) for row, reference in zip(rewards, references, strict=True))


def all_good_by_prompt(rewards: np.ndarray, prompt: np.ndarray, quantile: float = GOOD_ENOUGH) -> np.ndarray:
    """:func:`all_good` [n] with the quantile of each prompt's own rewards for references; of a prompt with fewer than
    four responses, that of all prompts together.

    Args:
        rewards: [r, n]. prompt: int [n], which prompt each response is of.

    >>> all_good_by_prompt(np.array([[0.0, 1.0, 2.0, 3.0]]), np.array([0, 0, 0, 0]), 1.0).round(3)
    array([-3.049, -2.127, -1.313, -0.693])
    """
    value = np.empty(rewards.shape[1])
    order = np.argsort(prompt, kind="stable")
    for places in np.split(order, np.flatnonzero(np.diff(prompt[order])) + 1):
        measured = rewards[:, places] if len(places) >= _FEWEST else rewards
        references = [good_enough(row, quantile) for row in measured]
        value[places] = all_good(rewards[:, places], references)
    return value


def harmonic(rewards: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """The λ-harmonic mean, float64 [n], of rewards [r, n] above 0 with weights that add up to 1.

    >>> harmonic(np.array([[0.5, 1.0], [0.5, 0.25]]), [0.5, 0.5])
    array([0.5, 0.4])
    """
    rewards, weights = np.asarray(rewards, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if (rewards <= 0).any():
        raise DataError("a harmonic mean is of rewards above 0; use all_good for others")
    if (weights < 0).any() or abs(weights.sum() - 1) > 1e-6:
        raise DataError("the weights of a harmonic mean must be 0 or more and add up to 1")
    return 1 / (weights[:, None] / rewards).sum(0)
