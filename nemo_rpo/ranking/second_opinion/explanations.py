r"""Two explanations of a table that strengths do not fit: some entries are corrupted, or all are explained badly.

Each is a fixed point of three steps, begun at either end: with the entries that agree within chance
(:func:`~nemo_rpo.ranking.second_opinion.decomposition.decompose`), or with all of them::

    L ← the nearest table to the kept entries       b ← the misfit of the kept entries
    kept ← the entries whose residual or a larger one has a probability above level / E under N(0, σ²) + Laplace(b)

The likelier one stands. Kept entries have that law, the others N(0, σ² + 4 mean logit²), which is what turning a result
around does; K of E are wrong with probability 1 / ((E + 1) C(E, K)). Corruption must be ``_ODDS`` times likelier: a few
entries that agree by chance are found in every small table.

Shapes: E entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lgamma, log
from statistics import NormalDist

import numpy as np

from nemo_rpo.ranking.second_opinion.decomposition import Nearest, Structure, decompose, nearest
from nemo_rpo.ranking.second_opinion.misfit import log_likelihood, log_tail, misfit_scale

_LEVEL = 0.05  # chance that any entry of an honest table is distrusted
_ODDS = 5.0  # chosen on worlds of benchmarks/robust_tables.py choosing
_FREELY, _ROUNDS = 20, 60  # rounds in which the misfit may fall, and at most


@dataclass(frozen=True)
class Explanation:
    """Attributes: believed: logits [E]. corrupted: bool [E]. misfit: b, log-odds. table: [N, N] (``rank2`` only)."""

    believed: np.ndarray
    corrupted: np.ndarray
    misfit: float
    table: np.ndarray | None


def explain(
    low: np.ndarray, high: np.ndarray, logit: np.ndarray, variance: np.ndarray, players: int, structure: Structure
) -> Explanation:
    """The likelier explanation of the entries (low, high), [E] each."""
    largest = NormalDist().inv_cdf(1 - _LEVEL / (2 * len(logit)))  # |z| of so many honest entries
    error, found = np.sqrt(variance), []
    for sparse in (False, True):
        fit = nearest(low, high, variance, players, structure)
        wrong = decompose(fit, logit, variance, largest).corrupted if sparse else np.zeros(len(logit), dtype=bool)
        one = _settled(fit, logit, error, wrong)
        found.append((_log_evidence(one, logit, error, fit.free) - sparse * log(_ODDS), one))
    return max(found, key=lambda pair: pair[0])[1]  # the first where they are one


def _settled(fit: Nearest, logit: np.ndarray, error: np.ndarray, corrupted: np.ndarray) -> Explanation:
    bound, scale, least = log(_LEVEL / len(logit)), 0.0, 0.0
    for round in range(_ROUNDS):
        kept = ~corrupted
        believed = fit.settled(logit, kept)
        residual = logit - believed
        scale = max(least, misfit_scale(residual[kept], error[kept], fit.free))
        wrong = log_tail(residual, error, scale) < bound
        if (wrong == corrupted).all() or len(wrong) - wrong.sum() <= fit.free:
            break
        corrupted, least = wrong, scale if round >= _FREELY else 0.0
    return Explanation(believed, corrupted, scale, fit.table)


def _log_evidence(found: Explanation, logit: np.ndarray, error: np.ndarray, free: int) -> float:
    residual, wrong, entries = logit - found.believed, found.corrupted, len(logit)
    kept, count = ~wrong, int(wrong.sum())
    variance = error[wrong] ** 2 + 4 * (logit**2).mean()
    turned = -(residual[wrong] ** 2 / variance + np.log(2 * np.pi * variance)).sum() / 2
    prior = lgamma(count + 1) + lgamma(entries - count + 1) - lgamma(entries + 2)
    return log_likelihood(residual[kept], error[kept], found.misfit, free) + float(turned) + prior
