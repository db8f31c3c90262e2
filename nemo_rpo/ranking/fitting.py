"""From comparisons to strengths, once or for many resamples of them. Shapes: n comparisons, N players, B resamples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nemo_rpo.data.annotator_table import VIRTUAL
from nemo_rpo.errors import DataError
from nemo_rpo.ranking.comparisons import Comparisons
from nemo_rpo.ranking.likelihood import Likelihood
from nemo_rpo.ranking.ranking_settings import FEW, RankSettings
from nemo_rpo.ranking.schedule import Results, Schedule
from nemo_rpo.ranking.scoring import BATCH, OneStep, maximise
from nemo_rpo.ranking.strengths import Strengths, bradley_terry
from nemo_rpo.threads import one_thread

if TYPE_CHECKING:
    from nemo_rpo.ranking.crowd import Reliabilities


class Fit(NamedTuple):
    """Strengths of the players, and with ``crowd_bt`` the reliabilities of the annotators."""

    strengths: Strengths
    reliabilities: Reliabilities | None


def fit(comparisons: Comparisons, settings: RankSettings | None = None) -> Fit:
    """The strengths behind the comparisons, under the model that ``settings`` describe.

    Raises:
        DataError: nothing but ties, or without a prior comparisons that have no maximum of the likelihood.
    """
    settings = settings or RankSettings()
    if settings.ties == "drop":
        comparisons = comparisons.take(comparisons.outcome != 0)
    if not comparisons.outcome.any():
        raise DataError("nobody won: there are only ties, which say nothing about who is better")
    schedule = Schedule(comparisons.first, comparisons.second, len(comparisons.players))
    if settings.crowd_bt:
        if comparisons.annotators == [VIRTUAL]:
            raise DataError("no row says who judged, which --crowd-bt needs to know; name the field, --annotator-key")
        from nemo_rpo.ranking.crowd import crowd_bt  # the only model that needs torch

        with one_thread():
            return Fit(*crowd_bt(comparisons, schedule, settings))
    results = plain_results(comparisons, schedule, settings)
    if settings.prior == 0:
        schedule.check_connected(results, comparisons.players)
    return Fit(bradley_terry(schedule, results, settings), None)


def plain_results(comparisons: Comparisons, schedule: Schedule, settings: RankSettings) -> Results:
    """Every comparison taken at its word."""
    first, second, tie = ((comparisons.outcome == sign).astype(np.float64) for sign in (1, -1, 0))
    if settings.ties == "half":
        return schedule.results(first + tie / 2, second + tie / 2, np.zeros_like(tie))
    return schedule.results(first, second, tie)


def bootstrap(
    comparisons: Comparisons, settings: RankSettings, best: Fit, progress: Callable[[int], None] | None = None
) -> np.ndarray:
    """Log-strengths fitted to resamples drawn with replacement, float64 [B, N].

    A resample is the same comparisons with other weights. With up to ``settings.refit_parameters`` players and
    annotators each is fitted anew from the best fit; with more, by one step of it (:mod:`nemo_rpo.ranking.scoring`).

    Of a player who met others fewer than :data:`FEW` times, or never lost, or never won, resamples show too little of
    what else might have happened (of one comparison nothing at all): their strengths spread at least as far as the
    curvature of the posterior says, their opponents known.

    Raises:
        DataError: a resample without a maximum of the likelihood (with a prior there is always one); or a single
            annotator to be drawn anew.
    """
    if settings.resample == "annotator" and len(np.unique(comparisons.annotator)) < 2:
        raise DataError(
            "all comparisons are of one annotator, so drawing annotators anew shows nothing: --resample comparison, or "
            "name the field with --annotator-key"
        )
    drawn = _resamples(comparisons, settings)
    if settings.ties == "drop":
        kept = comparisons.outcome != 0
        comparisons, drawn = comparisons.take(kept), (weights[kept] for weights in drawn)
    likelihood, bounds = Likelihood(comparisons, settings), (0.0, 0.0)
    if settings.crowd_bt:
        from nemo_rpo.ranking.crowd import crowd_likelihood

        slots = best.reliabilities is not None and best.reliabilities.leaning is not None
        likelihood, bounds = crowd_likelihood(comparisons, settings, slots=slots)
    theta = parameters(likelihood, best)
    draws, done = np.empty((settings.bootstrap, len(comparisons.players))), 0
    refit = likelihood.players + likelihood.annotators <= settings.refit_parameters
    one_step = None if refit else OneStep(likelihood, theta)
    tolerance = max(settings.tolerance, 1e-4)  # resamples differ by far more than this
    for batch in _in_batches(drawn, 1 if refit else BATCH):
        if one_step is None:
            _check(comparisons, likelihood, settings, batch[0])
            found, _ = maximise(
                likelihood, theta, likelihood.counts(batch[0]), bounds, tolerance, settings.max_iterations
            )
            draws[done] = found[: likelihood.players]
        else:
            draws[done : done + len(batch)] = one_step.strengths(batch)
        done += len(batch)
        if progress:
            progress(done)
    return _spread(draws, comparisons, likelihood, theta, settings.seed)


def _spread(
    draws: np.ndarray, comparisons: Comparisons, likelihood: Likelihood, theta: np.ndarray, seed: int
) -> np.ndarray:
    """The draws with what resamples of few comparisons cannot show."""
    wins, losses, ties = comparisons.tally()
    thin = np.flatnonzero((wins + losses + ties < FEW) | (wins == 0) | (losses == 0))
    if not len(thin):
        return draws
    row, column, value = likelihood.entries(likelihood.information(likelihood.counts(), likelihood.terms(theta)))
    own = row == column
    curvature = np.bincount(row[own], value[own], likelihood.size) + likelihood.prior_information(theta)
    missing = np.maximum(1 / curvature[thin] - draws[:, thin].var(0), 0.0)
    rng = np.random.default_rng([seed, 1])  # others than those of the resamples
    draws[:, thin] += np.sqrt(missing) * rng.standard_normal((len(draws), len(thin)))
    return draws


def parameters(likelihood: Likelihood, best: Fit) -> np.ndarray:
    """θ of :mod:`nemo_rpo.ranking.likelihood` at a fit."""
    parts = [best.strengths.log_strength]
    if best.reliabilities is not None:
        eta = best.reliabilities.eta
        parts.append(np.log(eta) - np.log1p(-eta))
        if best.reliabilities.leaning is not None:
            parts.append(best.reliabilities.leaning)
    if likelihood.modelled_ties:
        parts.append(np.log([max(best.strengths.tie_strength, 1e-9)]))
    return np.concatenate(parts)


def _check(comparisons: Comparisons, likelihood: Likelihood, settings: RankSettings, weights: np.ndarray) -> None:
    if settings.prior:
        return
    advice = "or ask for no intervals, --bootstrap 0"
    drawn = comparisons.take(weights > 0)
    if not drawn.outcome.any():
        raise DataError(f"a resample cannot be ranked (it holds ties alone); {advice}")
    schedule = Schedule(drawn.first, drawn.second, likelihood.players)
    try:
        schedule.check_connected(plain_results(drawn, schedule, settings), comparisons.players)
    except DataError as exc:
        raise DataError(f"a resample cannot be ranked ({exc}); {advice}") from exc


def _in_batches(drawn: Iterator[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    while batch := list(islice(drawn, size)):
        yield batch


def _resamples(comparisons: Comparisons, settings: RankSettings) -> Iterator[np.ndarray]:
    """How often each comparison is drawn, float64 [n], for every resample."""
    rng = np.random.default_rng(settings.seed)
    drawn, of = len(comparisons), None
    if settings.resample == "annotator":
        drawn, of = len(comparisons.annotators), comparisons.annotator
    for _ in range(settings.bootstrap):
        times = np.bincount(rng.integers(drawn, size=drawn), minlength=drawn).astype(np.float64)
        yield times if of is None else times[of]
