"""From comparisons to strengths, once or for many resamples of them. Shapes: n comparisons, N players, B resamples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nemo_rpo.data.annotator_table import VIRTUAL
from nemo_rpo.errors import DataError
from nemo_rpo.ranking.comparisons import Comparisons
from nemo_rpo.ranking.ranking_settings import RankSettings
from nemo_rpo.ranking.schedule import Results, Schedule
from nemo_rpo.ranking.strengths import Strengths, bradley_terry

if TYPE_CHECKING:
    from nemo_rpo.ranking.crowd import Reliabilities


class Fit(NamedTuple):
    """Strengths of the players, and with ``crowd_bt`` the reliabilities of the annotators."""

    strengths: Strengths
    reliabilities: Reliabilities | None


def fit(comparisons: Comparisons, settings: RankSettings | None = None, start: Fit | None = None) -> Fit:
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

        return Fit(*crowd_bt(comparisons, schedule, settings, start=start))
    results = plain_results(comparisons, schedule, settings)
    if settings.prior == 0:
        schedule.check_connected(results, comparisons.players)
    return Fit(bradley_terry(schedule, results, settings, start and start.strengths), None)


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

    Raises:
        DataError: a resample without a maximum of the likelihood (with a prior there is always one).
    """
    # Resamples differ by far more than this, and rounds of Crowd-BT are slow to settle the last digits.
    settings = replace(settings, tolerance=max(settings.tolerance, 1e-6), crowd_tolerance=1e-4)
    draws = np.empty((settings.bootstrap, len(comparisons.players)))
    for i, which in enumerate(_resamples(comparisons, settings)):
        try:
            draws[i] = fit(comparisons.take(which), settings, best).strengths.log_strength
        except DataError as exc:
            raise DataError(f"a resample cannot be ranked ({exc}); or ask for no intervals, --bootstrap 0") from exc
        if progress:
            progress(i + 1)
    return draws


def _resamples(comparisons: Comparisons, settings: RankSettings) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(settings.seed)
    if settings.resample == "comparison":
        for _ in range(settings.bootstrap):
            yield rng.integers(len(comparisons), size=len(comparisons))
        return
    annotators = len(comparisons.annotators)
    said = np.split(
        np.argsort(comparisons.annotator, kind="stable"),
        np.cumsum(np.bincount(comparisons.annotator, minlength=annotators))[:-1],
    )
    for _ in range(settings.bootstrap):
        yield np.concatenate([said[k] for k in rng.integers(annotators, size=annotators)])
