import math

import pytest
import torch

from nemo_rpo.em import BufferSettings, EMSettings, Votes, estimate, full_batch_em
from nemo_rpo.em.fit.empirical_bayes import Population, fit_population
from nemo_rpo.em.fit.marginal import vote_columns
from nemo_rpo.em.fit.temperature import judge_temperature

from .worlds import make_crowd

START = Population((3.0, 1.0), 1.0)


def fit(delta: torch.Tensor, votes: Votes, annotators: int, fit_prior: bool = True, fit_tau: bool = True):
    population = START
    eta = torch.full((annotators,), 0.8, dtype=torch.float64)
    for _ in range(4):
        em = EMSettings(prior=population.prior, link_tau=population.tau, sweep_tolerance=1e-4)
        sweep = full_batch_em(delta, votes, eta, em)
        eta = sweep.eta
        columns = vote_columns(delta, votes, eta, sweep.counts, lambda rows: rows)
        population = fit_population(columns, population, (3.0, 1.0), fit_prior, fit_tau)
    return population


@pytest.mark.parametrize("votes_per_pair", [1, 4])
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_population_and_temperature_are_recovered(scale, votes_per_pair):
    crowd = make_crowd(annotators=200, labels=12_000, votes_per_pair=votes_per_pair, population=(8.0, 2.0), seed=0)
    found = fit(crowd.delta * scale, crowd.votes, 200)
    a, b = found.prior
    assert a / (a + b) == pytest.approx(crowd.eta.mean().item(), abs=0.03)
    assert math.log((a + b) / 10) == pytest.approx(0, abs=0.5)
    assert found.log_tau_error < 0.12
    assert abs(math.log(found.tau / scale)) < 3 * found.log_tau_error


def test_the_error_of_the_temperature_is_honest():
    """Standardised by their stated errors, the estimates of twelve worlds scatter like standard normals."""
    scores = []
    for seed in range(12):
        crowd = make_crowd(annotators=60, labels=4000, votes_per_pair=1, population=(8.0, 2.0), seed=seed)
        found = fit(crowd.delta, crowd.votes, 60)
        scores.append(math.log(found.tau) / found.log_tau_error)
    scores = torch.tensor(scores)
    assert scores.mean().abs() < 3 / math.sqrt(12)
    assert 0.5 < scores.square().mean().sqrt() < 1.6


def test_one_annotator_leaves_the_prior_to_the_hyperprior():
    crowd = make_crowd(annotators=1, labels=3000, votes_per_pair=1, population=(8.0, 2.0), seed=1)
    a, b = fit(crowd.delta, crowd.votes, 1).prior
    assert 1.5 < a + b < 11
    assert 0.6 < a / (a + b) < 0.95


def test_what_is_not_asked_for_is_kept():
    crowd = make_crowd(annotators=30, labels=2000, votes_per_pair=1, population=(8.0, 2.0), seed=2)
    only_tau = fit(crowd.delta * 2, crowd.votes, 30, fit_prior=False)
    assert only_tau.prior == pytest.approx((3.0, 1.0)) and only_tau.tau > 1.3
    only_prior = fit(crowd.delta * 2, crowd.votes, 30, fit_tau=False)
    assert only_prior.tau == pytest.approx(1.0) and only_prior.prior != pytest.approx((3.0, 1.0))


def test_small_margins_of_single_labels_do_not_identify_a_temperature():
    crowd = make_crowd(annotators=50, labels=3000, votes_per_pair=1, population=(8.0, 2.0), spread=0.2, seed=3)
    found = fit(crowd.delta, crowd.votes, 50)
    verdict = judge_temperature(found, 9.0, 50, BufferSettings())
    assert not verdict.identified and verdict.weight == 0 and "do not tell the scale" in verdict.reason


def test_margins_that_know_nothing_do_not_identify_a_temperature():
    crowd = make_crowd(annotators=50, labels=3000, votes_per_pair=1, population=(8.0, 2.0), seed=4)
    shuffled = crowd.delta[torch.randperm(len(crowd.delta), generator=torch.Generator().manual_seed(0))]
    verdict = judge_temperature(fit(shuffled, crowd.votes, 50), 9.0, 50, BufferSettings())
    assert not verdict.identified and verdict.weight == 0 and verdict.reason
    found = estimate(shuffled, crowd.votes, torch.full((50,), 0.9, dtype=torch.float64), EMSettings())
    assert found.temperature.no_better_than_chance and found.sweep is None and (found.eta == 0.9).all()


def test_the_verdict_names_the_edge():
    verdict = judge_temperature(Population((8.0, 2.0), 400.0, 0.1), 9.0, 50, BufferSettings())
    assert not verdict.identified and "ran to its edge" in verdict.reason and verdict.value == math.inf
    assert not judge_temperature(Population((8.0, 2.0), 1.0, math.inf), 9.0, 50, BufferSettings()).identified
