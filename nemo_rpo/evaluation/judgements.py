"""Scores judged: accuracy, margin and calibration, with intervals that know that pairs of one prompt are alike.

Intervals are percentiles of a bootstrap that draws prompts, not labels: labels of a pair share its margin, and pairs of
a prompt share what the policy thinks of it, so labels are fewer observations than they look. A bootstrap of few prompts
is too narrow, as a normal interval with an estimated variance is; percentiles further out make up for it (Hesterberg,
What Teachers Should Know About the Bootstrap, 2015, section 3.5.2).

Shapes: v labels, G prompts, B resamples, m sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from nemo_rpo.errors import DataError
from nemo_rpo.evaluation.scores import Scores
from nemo_rpo.report.calibration_bins import BINS
from nemo_rpo.shares import Share, Z, share

_CHUNK = 100  # resamples held at once
_FLIPS = 10_000  # of the permutation test


class Estimate(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"


FIGURES = ("accuracy", "margin", "log_loss", "brier", "ece")


def judge(scores: Scores, resamples: int, seed: int) -> dict[str, Estimate]:
    """``accuracy`` (Δ = 0 counts half), mean ``margin`` Δ of the better response, ``log_loss`` and ``brier`` of
    p = σ(Δ), and ``ece`` as in :mod:`nemo_rpo.report.calibration_bins`, over all labels.
    """
    sums = _by_prompt(_terms(scores.margin), scores.prompt)
    drawn = np.concatenate([_figures(resampled) for resampled in _resampled(sums, resamples, seed)])
    low, high = np.quantile(drawn, _tails(len(sums)), axis=0)
    [value] = _figures(sums.sum(0, keepdims=True))
    return {
        name: Estimate(*map(float, row)) for name, row in zip(FIGURES, zip(value, low, high, strict=True), strict=True)
    }


def by_annotator(scores: Scores) -> list[tuple[str, Share]]:
    """Share of each annotator's labels whose response the policy prefers, the least first; Wilson's intervals.

    Against what was recorded, whatever the gold label says: it is the annotator who is compared.
    """
    names, place = np.unique(scores.annotator.astype(str), return_inverse=True)
    right = _right(scores.sign * scores.delta)
    counts, hits = np.bincount(place), np.bincount(place, weights=right)
    found = [(str(name), share(float(h), int(n))) for name, h, n in zip(names, hits, counts, strict=True)]
    return sorted(found, key=lambda row: (row[1].value, row[0]))


class Comparison(NamedTuple):
    """One policy against another on the same labels.

    Attributes:
        labels, prompts: compared.
        differences: of accuracy, log loss and Brier score, this one's less the other's; the interval is the wider of
            the bootstrap's and that of Student's t over prompts.
        p_value: of no difference in accuracy: two-sided, exchanging the policies prompt by prompt.
        won, lost: labels that only this one, only the other has right.
    """

    labels: int
    prompts: int
    differences: dict[str, Estimate]
    p_value: float
    won: int
    lost: int


def compare(ours: Scores, theirs: Scores, resamples: int, seed: int) -> Comparison:
    """Paired over the labels that both have; raises :class:`DataError` if there are none."""
    mine, other = _matched(ours, theirs)
    first, second = ours.margin[mine], theirs.margin[other]
    terms = _terms(first)[:, :4] - _terms(second)[:, :4]
    terms[:, 0] = 1
    sums = _by_prompt(terms, ours.prompt[mine])
    drawn = np.concatenate([r[:, 1:] / r[:, :1] for r in _resampled(sums, resamples, seed)])
    low, high = np.quantile(drawn, _tails(len(sums)), axis=0)
    value = sums[:, 1:].sum(0) / sums[:, 0].sum()
    half = _half_width(sums[:, 1:] - value * sums[:, :1], sums[:, 0].sum())
    low, high = np.minimum(low, value - half), np.maximum(high, value + half)
    names = ("accuracy", "log_loss", "brier")
    differences = {
        name: Estimate(*map(float, row)) for name, row in zip(names, zip(value, low, high, strict=True), strict=True)
    }
    won, lost = int(((first > 0) & (second <= 0)).sum()), int(((first <= 0) & (second > 0)).sum())
    return Comparison(len(mine), len(sums), differences, _permutation(sums[:, 1], seed), won, lost)


def _matched(ours: Scores, theirs: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the same label of both: the same pair, annotator and, where they labelled it twice, occasion."""

    def keys(scores: Scores) -> dict[tuple[str, str, int], int]:
        seen: dict[tuple[str, str], int] = {}
        found = {}
        for row, key in enumerate(zip(scores.pair_id, scores.annotator, strict=True)):
            seen[key] = seen.get(key, -1) + 1
            found[(*key, seen[key])] = row
        return found

    theirs_of = keys(theirs)
    both = [(row, theirs_of[key]) for key, row in keys(ours).items() if key in theirs_of]
    if not both:
        raise DataError("the two sets of scores have no label in common; evaluate both on the same data")
    mine, other = map(np.array, zip(*both, strict=True))
    return mine, other


def _right(margin: np.ndarray) -> np.ndarray:
    return (margin > 0) + 0.5 * (margin == 0)


def _terms(margin: np.ndarray) -> np.ndarray:
    """float64 [v, 5 + 3 BINS]: one, right, log loss, squared error, margin, and each bin's count, right, confidence."""
    p, right = np.exp(-np.logaddexp(0, -margin)), _right(margin)
    confidence = np.maximum(p, 1 - p)
    place = np.minimum(((confidence - 0.5) * 2 * BINS).astype(np.int64), BINS - 1)
    inside = np.eye(BINS)[place]
    plain = np.stack((np.ones_like(p), right, np.logaddexp(0, -margin), (1 - p) ** 2, margin), 1)
    return np.concatenate((plain, inside, inside * right[:, None], inside * confidence[:, None]), 1)


def _by_prompt(terms: np.ndarray, prompt: np.ndarray) -> np.ndarray:
    """[G, m] sums of the labels of each prompt."""
    names, place = np.unique(prompt.astype(str), return_inverse=True)
    sums = np.zeros((len(names), terms.shape[1]))
    np.add.at(sums, place, terms)
    return sums


def _resampled(sums: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """[b, m] sums over prompts that are drawn anew, ``resamples`` in all."""
    draw, groups = np.random.default_rng(seed), len(sums)
    for start in range(0, resamples, _CHUNK):
        times = draw.multinomial(groups, np.full(groups, 1 / groups), size=min(_CHUNK, resamples - start))
        yield times @ sums


def _tails(prompts: int) -> tuple[float, float]:
    """Which percentiles of a bootstrap over so many prompts are a 95 % interval: those of a normal at ± t √(n / (n-1)),
    t being Student's 97.5 % with n-1 degrees of freedom.

    >>> [round(_tails(n)[0], 4) for n in (4, 10, 40, 10_000)]
    [0.0001, 0.0086, 0.0203, 0.025]
    """
    if prompts < 2:
        return 0.0, 1.0
    free = prompts - 1
    t = _student(free)
    tail = 0.5 * math.erfc(t * math.sqrt(prompts / free / 2))
    return tail, 1 - tail


def _half_width(residuals: np.ndarray, labels: float) -> np.ndarray:
    """[m] half the width of 95 % intervals of ratios, by Student's t: of a handful of prompts, no resample strays far.

    Args:
        residuals: [G, m] of each prompt its sum, less what its labels would have at the ratio of all.
    """
    prompts = len(residuals)
    if prompts < 2:
        return np.full(residuals.shape[1], math.inf)
    return _student(prompts - 1) * np.sqrt(prompts / (prompts - 1) * (residuals**2).sum(0)) / labels


def _student(free: int) -> float:
    """97.5 % of Student's distribution: closed forms up to two degrees of freedom, then its expansion (to 1 %).

    >>> [round(_student(free), 2) for free in (1, 2, 3, 10, 1000)]
    [12.71, 4.3, 3.16, 2.23, 1.96]
    """
    if free <= 2:
        return (12.7062, 4.3027)[free - 1]
    terms = (
        (Z**3 + Z) / 4,
        (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96,
        (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,
    )
    return Z + sum(term / free ** (k + 1) for k, term in enumerate(terms))


def _figures(sums: np.ndarray) -> np.ndarray:
    """[b, 5] in the order of :data:`FIGURES`."""
    n, right, log_loss, brier, margin = sums[:, :5].T
    _, bin_right, bin_confidence = np.split(sums[:, 5:], 3, axis=1)
    ece = np.abs(bin_right - bin_confidence).sum(1)
    return np.stack((right, margin, log_loss, brier, ece), 1) / n[:, None]


def _permutation(difference: np.ndarray, seed: int) -> float:
    """Share of sign flips of the prompts' differences [G] that reach as far as what was observed."""
    moved = difference[difference != 0]
    if not len(moved):
        return 1.0
    draw, observed, reached = np.random.default_rng(seed), abs(moved.sum()), 0
    for start in range(0, _FLIPS, _CHUNK):
        flips = draw.integers(0, 2, size=(min(_CHUNK, _FLIPS - start), len(moved))) * 2 - 1
        reached += int((np.abs(flips @ moved) >= observed - 1e-9).sum())
    return (reached + 1) / (_FLIPS + 1)
