"""How well a score of confidence tells right answers from wrong ones. Shapes: n questions."""

from __future__ import annotations

import numpy as np

from nemo_rpo.ranking.ranking_settings import FEW


def selective_auc(score: np.ndarray, correct: np.ndarray) -> float:
    r"""The area under the accuracy-coverage curve: 1 - the area under the risk-coverage curve.

    Answer the k questions of highest ``score`` and leave the rest: A = 1/n Σ_k (right answers among them) / k, as of
    selective classification (2502.01126). Questions of equal score come in any order, and A is the mean over those
    orders: a constant score has the accuracy, and the AUC has no gift for ties.

    Args:
        score: confidence of each question, on any scale, [n]. correct: 1 or 0, whether its answer was right, [n].

    >>> selective_auc(np.array([0.9, 0.8, 0.7, 0.1]), np.array([1, 1, 0, 1]))  # (1 + 1 + 2/3 + 3/4) / 4
    0.8541666666666667
    >>> selective_auc(np.zeros(4), np.array([1, 1, 0, 1]))
    0.75
    """
    return float(accuracy_curve(score, correct).mean())


def accuracy_curve(score: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """The accuracy among the k questions of highest ``score``, [n], for k = 1 … n; see :func:`selective_auc`."""
    order = np.argsort(-score, kind="stable")
    _, block, size = np.unique(-score[order], return_inverse=True, return_counts=True)
    right = np.bincount(block, correct[order])
    # Inside a block of equal scores each question has the block's accuracy.
    return np.cumsum((right / size)[block]) / np.arange(1, len(score) + 1)


def auc_interval(
    scores: dict[str, np.ndarray], correct: np.ndarray, resamples: int, confidence: float, seed: int
) -> dict[str, tuple[float, float]]:
    """Intervals of :func:`selective_auc` of each score over questions drawn anew, the same draws for all; of every
    score but the first also of its difference ``first - other``, under ``"first - other"``. None of fewer than
    :data:`FEW` questions.
    """
    if len(correct) < FEW:
        return {}
    rng, n, draws = np.random.default_rng(seed), len(correct), {}
    first, *others = scores
    for _ in range(resamples):
        drawn = rng.integers(n, size=n)
        found = {name: selective_auc(score[drawn], correct[drawn]) for name, score in scores.items()}
        found |= {f"{first} - {other}": found[first] - found[other] for other in others}
        for name, value in found.items():
            draws.setdefault(name, []).append(value)
    tail = (1 - confidence) / 2
    return {name: tuple(np.quantile(values, [tail, 1 - tail]).tolist()) for name, values in draws.items()}
