"""Crowd-BT: strengths of players and reliabilities of annotators, estimated together."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nemo_rpo.em import EMSettings, Votes, full_batch_em, posterior, standard_errors
from nemo_rpo.ranking.comparisons import Comparisons
from nemo_rpo.ranking.extrapolation import rise
from nemo_rpo.ranking.likelihood import Likelihood
from nemo_rpo.ranking.ranking_settings import RankSettings
from nemo_rpo.ranking.schedule import Results, Schedule
from nemo_rpo.ranking.scoring import maximise
from nemo_rpo.ranking.strengths import Strengths, bradley_terry, one_round

logger = logging.getLogger(__name__)

_LOG_BAYES_FACTOR = 3.0  # by which the evidence has to rise for leanings to be taken
_NEAR = 1e-2  # strengths move by less than this a round once the EM is at its mode


class Reliabilities(NamedTuple):
    """Attributes: η of every annotator [K], its standard error [K] for known strengths, signed labels [K]; and where it
    was asked for by the evidence, the leaning [K] to what was shown first, in logits."""

    eta: np.ndarray
    standard_error: np.ndarray
    labels: np.ndarray
    leaning: np.ndarray | None = None


def crowd_bt(
    comparisons: Comparisons,
    schedule: Schedule,
    settings: RankSettings,
    em: EMSettings | None = None,
) -> tuple[Strengths, Reliabilities]:
    r"""The Bradley-Terry model seen through annotators who are right with probability η_k.

    An annotator who is wrong names the other winner; ties are not doubted::

        P(k says i beats j) = (η_k π_i + (1 - η_k) π_j) / D

    This is RE-PO with log-strengths for a policy: Δ = s_i - s_j, and the reliabilities come from the EM of
    :func:`nemo_rpo.em.full_batch_em` under its Beta prior. Each round refits the strengths to w wins and 1 - w losses,
    w being the posterior that a label is right, and then the reliabilities to the strengths; neither step lowers the
    marginal posterior. The rounds find the mode; its top is reached by Fisher scoring where the system is small enough
    to be solved, else by EM steps of both at once, accelerated (:mod:`nemo_rpo.ranking.extrapolation`).

    Source: X. Chen et al., "Pairwise ranking aggregation in a crowdsourced setting", WSDM 2013.
    """
    em = em or EMSettings()
    labels = _Labels(comparisons)
    strengths, eta = None, torch.full((len(comparisons.annotators),), em.eta_init, dtype=torch.float64)
    dense = len(comparisons.players) + len(comparisons.annotators) <= settings.refit_parameters
    tolerance = max(settings.crowd_tolerance, _NEAR)
    inner = replace(settings, tolerance=max(settings.tolerance, 0.1 * tolerance))
    sweep = replace(em, sweep_tolerance=max(em.sweep_tolerance, 0.1 * tolerance))
    right = posterior(labels.margin(strengths), labels.votes, eta.logit())
    for _ in range(settings.crowd_max_iterations):
        before = strengths
        strengths = bradley_terry(schedule, labels.results(right, schedule, settings), inner, before)
        eta = full_batch_em(labels.margin(strengths), labels.votes, eta, sweep).eta
        right = posterior(labels.margin(strengths), labels.votes, eta.logit())
        moved = np.inf if before is None else np.abs(strengths.log_strength - before.log_strength).max()
        if moved < tolerance:
            break
    else:
        logger.warning("Crowd-BT stopped with strengths still moving by %.1e a round", moved)
    leaning = None
    if dense:
        strengths, eta, leaning = _solved(comparisons, settings, em, strengths, eta)
    else:
        strengths, eta = _risen(comparisons, labels, schedule, settings, em, strengths, eta)
        if comparisons.slot is not None:
            most = settings.refit_parameters
            logger.warning("the order shown is left out: it is used with up to %d players and annotators", most)
    error = standard_errors(labels.margin(strengths), labels.votes, eta, em)
    return strengths, Reliabilities(eta.numpy(), error.numpy(), labels.count(), leaning)


def crowd_likelihood(
    comparisons: Comparisons, settings: RankSettings, em: EMSettings | None = None, slots: bool = False
) -> tuple[Likelihood, tuple[float, float]]:
    """The marginal likelihood of the model with its priors, with leanings or without, and the bounds of logit η."""
    em = em or EMSettings()
    low, high = (math.log(bound / (1 - bound)) for bound in em.eta_bounds)
    return Likelihood(comparisons, settings, em.prior, slots), (low, high)


def _solved(
    comparisons: Comparisons, settings: RankSettings, em: EMSettings, near: Strengths, eta: Tensor
) -> tuple[Strengths, Tensor, np.ndarray | None]:
    """The mode near an EM's estimate, by Fisher scoring; with leanings where the order shown is known and the marginal
    likelihood (Laplace's) asks for them.
    """
    nu = [max(near.tie_strength, 1e-9)]
    found = []
    for slots in (False, True)[: 1 + (comparisons.slot is not None)]:
        likelihood, bounds = crowd_likelihood(comparisons, settings, em, slots)
        start = [near.log_strength, eta.logit().numpy(), np.zeros(likelihood.annotators * slots)]
        theta = np.concatenate([*start, np.log(nu)[: likelihood.modelled_ties]])
        counts = likelihood.counts()
        theta, converged = maximise(
            likelihood, theta, counts, bounds, settings.crowd_tolerance, settings.max_iterations
        )
        evidence = likelihood.log_posterior(theta, counts)
        if slots:
            known = likelihood.information(counts, likelihood.terms(theta))[:, 3, 3]
            of_annotator = np.bincount(likelihood.k - likelihood.players, known, likelihood.annotators)
            evidence -= 0.5 * float(np.log1p(of_annotator).sum())
        found.append((evidence, likelihood, theta, converged))
    taken = found[-1] if len(found) > 1 and found[1][0] - found[0][0] > _LOG_BAYES_FACTOR else found[0]
    _, likelihood, theta, converged = taken
    if len(found) > 1:
        word = "taken" if likelihood.slots else "left out"
        logger.info("order shown: %s (log Bayes factor %+.1f)", word, found[1][0] - found[0][0])
    players, annotators = likelihood.players, likelihood.annotators
    tie_strength = float(np.exp(theta[-1])) if likelihood.modelled_ties else near.tie_strength
    strengths = Strengths(theta[:players], tie_strength, near.iterations, converged)
    eta = torch.from_numpy(theta[players : players + annotators]).sigmoid()
    return strengths, eta, theta[likelihood.leanings()] if likelihood.slots else None


def _risen(
    comparisons: Comparisons,
    labels: _Labels,
    schedule: Schedule,
    settings: RankSettings,
    em: EMSettings,
    near: Strengths,
    eta: Tensor,
) -> tuple[Strengths, Tensor]:
    """The mode near an EM's estimate, by EM steps that move strengths and reliabilities together."""
    likelihood, bounds = crowd_likelihood(comparisons, settings, em)
    counts, players, (a, b) = likelihood.counts(), likelihood.players, em.prior
    of_eta, judged = slice(players, players + likelihood.annotators), labels.count()

    def strengths_of(theta: np.ndarray) -> Strengths:
        return Strengths(theta[:players], float(np.exp(theta[-1])) if likelihood.modelled_ties else 0.0, 0, False)

    def em_step(theta: np.ndarray) -> np.ndarray:
        found = strengths_of(theta)
        right = posterior(labels.margin(found), labels.votes, torch.from_numpy(theta[of_eta]))
        results = labels.results(right, schedule, settings)
        s, nu = one_round(found.log_strength, found.tie_strength, schedule, results, settings.prior)
        eta = (labels.sums(right) + a) / (judged + a + b)
        return within(theta_of(s, eta, nu))

    def theta_of(s: np.ndarray, eta: np.ndarray, nu: float) -> np.ndarray:
        return np.concatenate([s, np.log(eta) - np.log1p(-eta), np.log([max(nu, 1e-9)])[: likelihood.modelled_ties]])

    def within(theta: np.ndarray) -> np.ndarray:
        theta[of_eta] = theta[of_eta].clip(*bounds)
        return theta

    theta, steps, converged = rise(
        em_step,
        lambda theta: likelihood.log_posterior(theta, counts),
        within,
        theta_of(near.log_strength, eta.numpy(), near.tie_strength),
        0.1 * settings.crowd_tolerance,
        settings.crowd_max_iterations,
    )
    if not converged:
        logger.warning("Crowd-BT stopped after %d steps with strengths still moving", steps)
    found = strengths_of(theta)
    return found._replace(iterations=steps, converged=converged), torch.from_numpy(theta[of_eta]).sigmoid()


class _Labels:
    """The signed comparisons as labels of pairs, chosen being the player that was said to win."""

    def __init__(self, comparisons: Comparisons) -> None:
        self.comparisons = comparisons
        self.signed = comparisons.outcome != 0
        self.first_won = comparisons.outcome[self.signed] > 0
        first, second = comparisons.first[self.signed], comparisons.second[self.signed]
        self._better = torch.from_numpy(np.where(self.first_won, first, second))
        self._worse = torch.from_numpy(np.where(self.first_won, second, first))
        self._annotator = comparisons.annotator[self.signed]
        self.votes = Votes.single(torch.from_numpy(self._annotator))

    def margin(self, strengths: Strengths | None) -> Tensor:
        """By how much the named winner is the stronger, logits, float64 [signed]; 0 without strengths."""
        if strengths is None:
            return torch.zeros(len(self._better), dtype=torch.float64)
        s = torch.from_numpy(strengths.log_strength)
        return s[self._better] - s[self._worse]

    def results(self, right: Tensor, schedule: Schedule, settings: RankSettings) -> Results:
        """The results in which every comparison is won by either side as far as its label is believed."""
        w, tied = right.numpy(), (~self.signed).astype(np.float64)
        first, second = (tied / 2, tied / 2) if settings.ties == "half" else (0 * tied, 0 * tied)
        first[self.signed] = np.where(self.first_won, w, 1 - w)
        second[self.signed] = np.where(self.first_won, 1 - w, w)
        return schedule.results(first, second, 0 * tied if settings.ties == "half" else tied)

    def count(self) -> np.ndarray:
        """Signed labels of every annotator, int64 [K]."""
        return np.bincount(self._annotator, minlength=len(self.comparisons.annotators))

    def sums(self, right: Tensor) -> np.ndarray:
        """Of every annotator, the posteriors that his labels are right, summed, float64 [K]."""
        return np.bincount(self._annotator, right.numpy(), len(self.comparisons.annotators))
