"""Agreement between annotators."""

from __future__ import annotations

import numpy as np


def krippendorff_alpha(counts: np.ndarray) -> float | None:
    r"""Krippendorff's α for nominal values: 1 for full agreement, 0 for what chance would give, below 0 for less.

    With n_uc ratings of unit u as category c, and m_u = Σ_c n_uc ≥ 2 ratings a unit, the coincidences are::

        o_ck = Σ_u n_uc (n_uk - [c = k]) / (m_u - 1),      n_c = Σ_k o_ck,      n = Σ_c n_c
        α = 1 - (n - 1) Σ_{c≠k} o_ck / Σ_{c≠k} n_c n_k

    A unit with one rating says nothing about agreement and is left out, whoever did not rate it.

    Args:
        counts: int [units, categories].

    Returns:
        ``None`` where no unit has two ratings, or all ratings are of one category: there is nothing to agree on.

    Source: Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011).

    >>> krippendorff_alpha(np.array([[2, 0], [2, 0], [0, 2], [1, 1]]))
    0.5333333333333333
    """
    rated = counts.sum(1)
    counts, rated = counts[rated >= 2].astype(np.float64), rated[rated >= 2]
    weighted = counts / (rated - 1)[:, None]
    coincidences = weighted.T @ counts - np.diag(weighted.sum(0))
    of_category = coincidences.sum(0)
    total = of_category.sum()
    by_chance = total**2 - (of_category**2).sum()
    if not by_chance > 0:
        return None
    observed = total - np.trace(coincidences)
    return float(1 - (total - 1) * observed / by_chance)
