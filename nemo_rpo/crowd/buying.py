r"""Which pairs to have labelled again, and by whom: expected information per price under the fitted model.

A new label of annotator k on pair i, whose first response is better with probability w and k being right with η_k, says
"first" with p = w η + (1-w)(1-η). It is expected to lower the entropy of the pair's truth, and of the annotator's skill
a_k = logit η_k (known to a variance v_k), by::

    I(truth) = h(p) - h(η)        I(skill) = ½ log(1 + v_k (2w-1)² (η(1-η))² / (p(1-p)))        h(x) = -x ln x - …

in nats. The first is largest where the pair is open and the annotator good, the second where the truth is known and the
annotator is not. Their sum over the price of a label is what labels are chosen by, greedily, one new label a pair.

Source: D. V. Lindley, "On a measure of the information provided by an experiment" (1956).

Shapes: n pairs, K annotators.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nemo_rpo.crowd.crowd_fit import CrowdFit
from nemo_rpo.errors import ConfigError, DataError

_CELLS = 64  # of |w - ½|, for which the best annotators are looked up
_ROUNDS = 10  # after each, what is known of skills is brought up to date
_SHARE = 2.0  # of an equal share of the labels, the most that one annotator is asked for


@dataclass(frozen=True)
class NextLabel:
    """A label to buy: index and id of the pair, whom to ask, the expected information in nats, and its price."""

    pair: int
    pair_id: str
    annotator: str
    information: float
    price: float


def next_labels(
    fit: CrowdFit,
    number: int,
    available: np.ndarray,
    budget: float | None = None,
    prices: Mapping[str, float] | None = None,
) -> list[NextLabel]:
    """Up to ``number`` labels to buy, the most informative for their price first.

    Nobody is asked about a pair that he has labelled, nor for more than twice an equal share of the labels.

    Args:
        available: bool [K], annotators who may be asked.
        budget: the most that all labels together may cost.
        prices: of a label by annotator; who is not in it is not asked. None: 1 each.

    Raises:
        ConfigError: nobody can be asked.
    """
    ids = fit.table.annotators.ids
    price = np.array([1.0 if prices is None else prices.get(name, np.nan) for name in ids])
    asked = np.flatnonzero(available & ~np.isnan(price) & ~np.isnan(fit.eta))
    if not len(asked):
        raise ConfigError("nobody is left to ask: all annotators are careless, unnamed or without a price")
    variance = fit.skill_error**2
    room = np.full(len(ids), max(1, int(np.ceil(_SHARE * number / len(asked)))))
    taken, spent, found = np.zeros(len(fit.w), dtype=bool), 0.0, []
    voted = set((fit.table.pair * len(ids) + fit.table.annotator).tolist())
    certainty = np.minimum((np.abs(fit.w - 0.5) * 2 * _CELLS).astype(np.int64), _CELLS - 1)
    for quota in np.diff(np.linspace(0, number, _ROUNDS + 1).round().astype(np.int64)).tolist():
        gain, slope = information(_cell_centres(), fit.eta[asked], variance[asked])
        worth = gain / price[asked]
        ranked = np.argsort(-worth, axis=1, kind="stable")
        order = np.argsort(-np.where(taken, -np.inf, worth.max(1)[certainty]), kind="stable")
        bought = 0
        for pair in order.tolist():
            if bought == quota or taken[pair]:
                break
            cell = certainty[pair]
            for at in ranked[cell].tolist():
                k = asked[at]
                affordable = budget is None or spent + price[k] <= budget
                if room[k] and affordable and pair * len(ids) + k not in voted:
                    found.append(
                        NextLabel(pair, fit.table.pair_id[pair], ids[k], float(gain[cell, at]), float(price[k]))
                    )
                    taken[pair], spent, bought = True, spent + price[k], bought + 1
                    room[k] -= 1
                    variance[k] /= 1 + variance[k] * slope[cell, at]
                    break
    return sorted(found, key=lambda label: -label.information / label.price)


def information(w: np.ndarray, eta: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Expected information [c, K] of a label for certainties ``w`` [c] and annotators [K], and the part of a label's
    information about the skill that multiplies its variance [c, K].

    >>> information(np.array([0.5, 1.0]), np.array([0.9, 0.5]), np.zeros(2))[0].round(3)
    array([[0.368, 0.   ],
           [0.   , 0.   ]])
    """
    w, eta = w[:, None], eta[None]
    p = w * eta + (1 - w) * (1 - eta)
    slope = ((2 * w - 1) * eta * (1 - eta)) ** 2 / np.maximum(p * (1 - p), 1e-12)
    return np.maximum(_entropy(p) - _entropy(eta), 0.0) + 0.5 * np.log1p(variance * slope), slope


def _entropy(p: np.ndarray) -> np.ndarray:
    p = p.clip(1e-12, 1 - 1e-12)
    return -p * np.log(p) - (1 - p) * np.log(1 - p)


def _cell_centres() -> np.ndarray:
    return 0.5 + (np.arange(_CELLS) + 0.5) / (2 * _CELLS)


def checked_prices(rows: Mapping[str, object]) -> dict[str, float]:
    """Prices by annotator as numbers; raises :class:`DataError` for one that is not above 0."""
    found = {}
    for name, value in rows.items():
        try:
            found[name] = float(value)
        except (TypeError, ValueError):
            found[name] = np.nan
        if not 0 < found[name] < np.inf:
            raise DataError(f"the price of a label by '{name}' must be a number above 0, found {value!r}")
    return found
