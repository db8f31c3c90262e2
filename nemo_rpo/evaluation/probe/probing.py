r"""A linear probe on a frozen model's hidden states: which layer knows, and margins for the EM before any training.

P(i beats j) = σ(θᵀ(h_i - h_j)) at each layer. It learns from what votes alone say of the truth (w, the label model's
posterior), of pairs of other prompts: a margin owes nothing to the labels of its own pair, or of its prompt. Before it
counts beside the votes it is scaled by one number, fitted to the held-out margins against w; where they make w no more
likely than a coin they count for nothing.

What the votes have in common (most people like the longer answer) is in the margins too, and no fit to votes can tell
it from the truth. Shapes: n pairs, L layers, h hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nemo_rpo.crowd.factors.held_out import Foretold, foretell
from nemo_rpo.crowd.factors.linear_bt import fit_linear_bt, mean_log_likelihood
from nemo_rpo.evaluation.probe.probe_settings import ProbeSettings
from nemo_rpo.shares import Z


class LayerScore(NamedTuple):
    """How much of the held-out truths a layer knows.

    Attributes:
        layer: 0 is the embeddings.
        accuracy: share of pairs whose likelier response it prefers; ties of w are left out.
        low, high: 95 % interval; pairs of one prompt hang together.
        gain: nats that its scaled margins make the truths likelier than a coin does, over all pairs.
        scale: what its margins are multiplied with.
        foretold: the margins themselves, unscaled, and the fit to all pairs.
    """

    layer: int
    accuracy: float
    low: float
    high: float
    gain: float
    scale: float
    foretold: Foretold


@dataclass(frozen=True)
class Probe:
    """All layers, and the margins of the best one.

    Attributes:
        layers: in order.
        best: the layer whose margins make the held-out truths the likeliest.
        margin: float64 [n], log-odds that the first response is better; 0 everywhere where the best gains too little.
        believed: whether the margins count.
    """

    layers: list[LayerScore]
    best: LayerScore
    margin: np.ndarray
    believed: bool


def probe_layers(
    differences: Iterable[np.ndarray],
    layers: Sequence[int],
    truth: np.ndarray,
    known: np.ndarray,
    groups: np.ndarray,
    settings: ProbeSettings | None = None,
) -> Probe:
    """Probes every layer, cross-fitted by ``groups``.

    Args:
        differences: [n, h] of each layer, states of the first response minus those of the second.
        layers: their numbers [L].
        truth: [n], P(first is better) as far as votes say.
        known: bool [n], pairs with a vote; the others are foretold alone.
        groups: int [n], prompts: pairs of one are never on both sides of a fit.

    Raises:
        DataError: fewer than three groups.
    """
    settings, weight = settings or ProbeSettings(), known.astype(float)
    scores = []
    for layer, x in zip(layers, differences, strict=True):
        found = foretell(x, truth, groups, weight, settings.kind, settings.held_out)
        scores.append(_score(layer, found, truth, known, groups))
    best = max(scores, key=lambda score: score.gain)
    believed = bool(best.gain >= settings.min_gain and best.scale > 0)
    margin = best.foretold.log_odds * best.scale if believed else np.zeros(len(truth))
    return Probe(scores, best, margin, believed)


def _score(layer: int, found: Foretold, truth: np.ndarray, known: np.ndarray, groups: np.ndarray) -> LayerScore:
    margin, weight = found.log_odds, known.astype(float)
    scale = float(fit_linear_bt(margin[known, None], truth[known], ridge=1e-6).theta[0])
    coin = np.zeros_like(margin)
    gain = mean_log_likelihood(scale * margin, truth, weight) - mean_log_likelihood(coin, truth, weight)
    judged = known & (truth != 0.5)
    right = np.where(margin == 0, 0.5, (margin > 0) == (truth > 0.5))[judged]
    mean, error = clustered_mean(right, groups[judged])
    low, high = max(0.0, mean - Z * error), min(1.0, mean + Z * error)
    return LayerScore(layer, mean, low, high, float(gain * weight.sum()), scale, found)


def clustered_mean(values: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """Mean of ``values`` [n] and its standard error, values of one group hanging together.

    >>> clustered_mean(np.array([1.0, 1.0, 0.0, 0.0]), np.array([0, 0, 1, 1]))
    (0.5, 0.5)
    """
    names, place = np.unique(groups, return_inverse=True)
    mean = float(values.mean())
    sums = np.bincount(place, values - mean)
    some = max(len(names), 2)
    return mean, float(np.sqrt(some / (some - 1) * np.square(sums).sum()) / len(values))
