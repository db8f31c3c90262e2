"""The full fit of ``estimator: buffer``: reliabilities, their population and the scale of the margins, together."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.em.collectives import Collectives
from nemo_rpo.em.em_settings import EMSettings
from nemo_rpo.em.fit.empirical_bayes import Population, fit_population
from nemo_rpo.em.fit.marginal import adapt_quadrature, log_marginal, vote_columns
from nemo_rpo.em.fit.sweep import SweepResult, full_batch_em
from nemo_rpo.em.fit.temperature import Temperature, judge_set_temperature, judge_temperature
from nemo_rpo.em.votes import Votes, chunks, with_finite_margin

# Alternations of EM and population fit. Two do where every pair has one label; the rest is for plugged-in
# co-annotators.
_MAX_ROUNDS = 8
_ROUND_TOLERANCE = 0.01  # in log a, log b and log τ: far below their standard errors
_EM_TOLERANCE = 1e-4  # of η between M-steps: a hundredth of the standard error that a thousand labels leave
_COARSE_TOLERANCE = 1e-3  # before the population has settled


class Estimate(NamedTuple):
    """What :func:`estimate` found; the same on every rank.

    Attributes:
        eta: float64 [K]; the start, untouched, where ``sweep`` is None.
        prior: (a, b) of the population's Beta.
        temperature: of the margins.
        information: mean of (2m-1)² over the votes, at the start's reliabilities; 0 says nothing, 1 everything.
        sweep: the closing EM, or None where there was too little information for one: neither other votes of the pairs
            nor margins that are believed.
    """

    eta: Tensor
    prior: tuple[float, float]
    temperature: Temperature
    information: float
    sweep: SweepResult | None

    @property
    def population(self) -> Population | None:
        """What a later fit may begin its search near; None where the search may have run into a corner."""
        return Population(self.prior, self.temperature.value) if self.temperature.identified else None


@torch.no_grad()
def estimate(
    delta: Tensor,
    votes: Votes,
    eta: Tensor,
    settings: EMSettings,
    collectives: Collectives | None = None,
    known: Tensor | None = None,
    near: Population | None = None,
) -> Estimate:
    """Alternates a full EM with a fit of the population, until both stand still; with the margins and without.

    The margins are believed where they make the votes more likely than no margins do, and the votes tell their scale
    (:func:`nemo_rpo.em.fit.temperature.judge_temperature`). Else the EM without a model is the answer, τ is inf, and
    where there is one label a pair, which says nothing about anybody alone, every reliability stays at its start.

    Args:
        delta, votes: margins [P] and labels [P, V] of this rank's pairs; those whose margin is not finite are left out.
        eta: start [K], the same on every rank.
        settings: ``prior`` is what is expected of annotators before any is seen, ``link_tau`` where the search for the
            temperature begins; see also :class:`nemo_rpo.em.em_settings.BufferSettings`.
        known: right and wrong answers [2, K] that count beside the labels (:class:`nemo_rpo.em.belief.Belief`).
        near: where the search begins instead, the last fit's :attr:`Estimate.population`, the same on every rank. It
            ends in the same place, after one or two rounds instead of three to six.
        collectives: per round those of :func:`full_batch_em` and one gather of at most 1.6 MB. None is differentiable.
    """
    delta, votes = with_finite_margin(delta, votes)
    collectives, eta = collectives or Collectives(), eta.double().clamp(*settings.eta_bounds)
    buffer, start = settings.buffer, Population(settings.prior, settings.link_tau)
    if near is not None:
        start = Population(
            near.prior if buffer.fit_prior else start.prior, near.tau if buffer.fit_temperature else start.tau
        )
    information = vote_information(delta / settings.link_tau, votes, eta, collectives)
    unsaid = Temperature(math.inf, False, math.nan, "the margins carry too little information")
    untouched = Estimate(eta, settings.prior, unsaid, information, None)
    if information <= buffer.min_information:
        return untouched

    sweep, population = _alternate(delta, votes, eta, settings, start, buffer.fit_temperature, collectives, known)
    silence, alone = torch.zeros_like(delta), untouched
    votes_alone = vote_information(silence, votes, eta, collectives)
    if votes_alone > buffer.min_information:
        of_votes = population._replace(tau=1.0)
        without, of_votes = _alternate(silence, votes, eta, settings, of_votes, False, collectives, known)
        alone = Estimate(without.eta, of_votes.prior, unsaid, votes_alone, without)
    gain = _log_likelihood(delta, votes, sweep, population, collectives, known) - _log_likelihood(
        silence, votes, alone.sweep or sweep, Population(alone.prior, 1.0), collectives, known
    )
    if buffer.fit_temperature:
        temperature = judge_temperature(population, gain, len(eta), buffer)
    else:
        temperature = judge_set_temperature(settings.link_tau, gain, buffer)
    if math.isinf(temperature.value):
        return alone._replace(temperature=temperature)
    if not temperature.weight and alone.sweep is not None:
        # Margins without a voice must not speak through the reliabilities either: those of a policy that learnt what
        # many annotators follow (length, say) would make these the reliable ones.
        return alone._replace(temperature=temperature._replace(value=math.inf))
    return Estimate(sweep.eta, population.prior, temperature, information, sweep)


def _log_likelihood(
    delta: Tensor,
    votes: Votes,
    sweep: SweepResult,
    population: Population,
    collectives: Collectives,
    known: Tensor | None,
) -> float:
    """Of the votes with the reliabilities integrated out, the same on every rank: whether margins are believed decides
    which collectives follow. One gather as in :func:`vote_columns` and one all-reduce of 16 bytes.
    """
    columns = vote_columns(delta, votes, sweep.eta, sweep.counts, collectives.gather_rows, known)
    quadrature = adapt_quadrature(columns, population.prior, population.tau)
    likelihood = log_marginal(columns, quadrature, *population.prior, population.tau)
    likelihood = torch.tensor((likelihood, 1.0), dtype=torch.float64, device=delta.device)
    collectives.all_reduce(likelihood)
    return (likelihood[0] / likelihood[1]).item()


@torch.no_grad()
def of_first_rank(found: Estimate, from_first: Callable[[Tensor], None]) -> Estimate:
    """The first rank's ``found``, to the bit. Ranks that hold copies of the same pairs fit each for itself, and one
    whose processor rounds otherwise would keep another η for the rest of the run.

    ``from_first``: see :class:`nemo_rpo.em.collectives.Collectives`; one call with 8 (3K + 12) bytes, whatever each
    rank has found. The temperature's ``reason``, a sentence for the log, stays each rank's own.
    """
    eta, sweep, nothing = found.eta, found.sweep, torch.zeros_like(found.eta)
    fitted = (nothing, nothing) if sweep is None else (sweep.counts, sweep.right_sums)
    figures = (*found.prior, *found.temperature[:3], *found.temperature[4:], found.information, sweep is not None)
    closing = (0.0, 0, False) if sweep is None else (float(sweep.log_likelihood), sweep.iterations, sweep.converged)
    packed = torch.cat((eta, *fitted, eta.new_tensor([*map(float, figures), *map(float, closing)])))
    from_first(packed)
    eta, counts, right_sums = packed[: 3 * len(eta)].view(3, -1)
    figures = packed[3 * len(eta) :].tolist()
    a, b, tau, identified, error, gain, chance, information, swept, likelihood, iterations, converged = figures
    temperature = Temperature(tau, bool(identified), error, found.temperature.reason, gain, bool(chance))
    if swept:
        at = packed.new_tensor(likelihood)
        sweep = SweepResult(eta, at, int(iterations), bool(converged), counts, right_sums)
    return Estimate(eta, (a, b), temperature, information, sweep if swept else None)


def _alternate(
    delta: Tensor,
    votes: Votes,
    eta: Tensor,
    settings: EMSettings,
    population: Population,
    fit_tau: bool,
    collectives: Collectives,
    known: Tensor | None,
) -> tuple[SweepResult, Population]:
    fit_prior = settings.buffer.fit_prior and not settings.freeze_eta

    def em(tolerance: float) -> SweepResult:
        at = replace(settings, prior=population.prior, link_tau=population.tau, sweep_tolerance=tolerance)
        return full_batch_em(delta, votes, eta, at, collectives.all_reduce, known)

    for _ in range(_MAX_ROUNDS if fit_prior or fit_tau else 0):
        sweep = em(max(settings.sweep_tolerance, _COARSE_TOLERANCE))
        eta = sweep.eta
        columns = vote_columns(delta, votes, eta, sweep.counts, collectives.gather_rows, known)
        fitted = fit_population(columns, population, settings.prior, fit_prior, fit_tau)
        last, population = population, _agree(fitted, collectives, eta.device)
        if _distance(last, population) < _ROUND_TOLERANCE:
            break
    return em(max(settings.sweep_tolerance, _EM_TOLERANCE)), population


def _agree(fitted: Population, collectives: Collectives, device: torch.device) -> Population:
    """The mean over the ranks: they fitted the same votes, but maybe on processors that round differently."""
    numbers = torch.tensor(
        [*fitted.prior, fitted.tau, min(fitted.log_tau_error, 1e9), 1.0], dtype=torch.float64, device=device
    )
    collectives.all_reduce(numbers)
    a, b, tau, error, _ = (numbers / numbers[-1]).tolist()
    return Population((a, b), tau, error if error < 1e9 else math.inf)


def _distance(one: Population, other: Population) -> float:
    pairs = zip((*one.prior, one.tau), (*other.prior, other.tau), strict=True)
    return max(abs(math.log(x / y)) for x, y in pairs)


def vote_information(delta: Tensor, votes: Votes, eta: Tensor, collectives: Collectives) -> float:
    """Mean of (2m-1)² over all signed votes, m being what margin and other votes of the pair give a vote.

    How much of one known answer a label is worth, about: with margins alone, E[(2p-1)²]. One all-reduce of 16 bytes.
    """
    logit_eta = torch.logit(eta)
    totals = torch.zeros(2, dtype=torch.float64, device=eta.device)
    for margin, chunk in chunks(delta, votes):
        sign = chunk.sign.double()
        evidence = sign * logit_eta[chunk.annotator]
        others = margin.unsqueeze(-1) + evidence.sum(-1, keepdim=True) - evidence
        signed = chunk.counted(sign.abs())
        totals += torch.stack(((torch.tanh(others / 2) ** 2 * signed).sum(), signed.sum()))
    collectives.all_reduce(totals)
    known, labels = totals.tolist()
    return known / labels if labels else 0.0
