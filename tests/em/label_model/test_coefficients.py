"""The model of a vote, its derivatives and the population's fit, against naive twins."""

import math

import pytest
import torch
import torch.nn.functional as F

from nemo_rpo.em import Votes, posterior
from nemo_rpo.em.label_model import LabelModelSettings, VoteFeatures
from nemo_rpo.em.label_model.coded_votes import vote_table
from nemo_rpo.em.label_model.coefficients import annotator_sums, coefficient_variances, newton_step, pair_sums
from nemo_rpo.em.label_model.coefficients import posterior as posterior_of_sums
from nemo_rpo.em.label_model.laplace import curvature
from nemo_rpo.em.label_model.member import PairPrior, expected_population, fit_member, share_start

from .crowds import make, spread_of_skills


@pytest.fixture(scope="module")
def problem():
    """Nine annotators, three coefficients each (skill, confidence, slot), weights and counts of all kinds."""
    crowd = make(spread_of_skills(9, 1), pairs=60, votes_per_pair=4, seed=3)
    generator = torch.Generator().manual_seed(5)
    confidence = torch.randn(crowd.votes.sign.shape, generator=generator)
    table = vote_table(crowd.votes, 9, VoteFeatures({"confidence": confidence}, {"slot": crowd.slot}))
    table = table._replace(weight=0.3 + torch.rand(len(table.pair), generator=generator))
    theta = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    prior = PairPrior.flat(60)
    return table, theta, prior


def log_votes(table, theta):
    """log P(s | z) of each vote for z = +1 and z = -1, written out."""
    x = table.design.double()
    found = []
    for z in (1.0, -1.0):
        sides = torch.tensor([z, z, 1.0])
        logit = (x * sides * theta[table.annotator]).sum(-1)
        found.append(torch.where(table.says_chosen, F.logsigmoid(logit), F.logsigmoid(-logit)) * table.weight)
    return found


def log_posterior(table, theta, population):
    up, down = log_votes(table, theta)
    zero = torch.zeros(table.num_pairs, dtype=torch.float64)
    both = torch.logaddexp(zero.index_add(0, table.pair, up), zero.index_add(0, table.pair, down)) - math.log(2)
    return both.sum() - 0.5 * ((theta - population.mean) ** 2 / population.variance).sum()


def test_one_coin_is_the_posterior_of_the_package():
    """With b = 0 and a_k = logit η_k, the evidence of a vote is s logit η_k."""
    crowd = make([0.9, 0.7, 0.4], pairs=20, votes_per_pair=2)
    table = vote_table(crowd.votes, 3)
    theta = torch.logit(crowd.eta).unsqueeze(-1)
    w = posterior_of_sums(PairPrior.flat(20).joint(pair_sums(table, theta)))
    torch.testing.assert_close(w, posterior(torch.zeros(20, dtype=torch.float64), crowd.votes, torch.logit(crowd.eta)))


def test_gradient_and_information_are_those_of_autograd(problem):
    table, theta, _ = problem
    w = torch.rand(60, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def expected(theta):
        up, down = log_votes(table, theta)
        return (w[table.pair] * up + (1 - w[table.pair]) * down).sum()

    sums = annotator_sums(table, theta, w, louis=False)
    torch.testing.assert_close(sums.gradient, torch.autograd.functional.jacobian(expected, theta))
    hessian = torch.autograd.functional.hessian(expected, theta)
    blocks = torch.stack([-hessian[k, :, k] for k in range(9)])
    torch.testing.assert_close(sums.information, blocks)


def test_observed_information_is_the_hessian_of_the_marginal_likelihood(problem):
    table, theta, prior = problem
    population = expected_population(table.names, ["slot"], LabelModelSettings())
    w = posterior_of_sums(prior.joint(pair_sums(table, theta)))
    hessian = -torch.autograd.functional.hessian(lambda x: log_posterior(table, x, population), theta).view(27, 27)
    # Away from a mode it need not be positive; a tight prior makes it so.
    tight = population._replace(variance=torch.full_like(population.variance, 0.02))
    hessian = hessian + torch.diag((1 / tight.variance - 1 / population.variance).repeat(9))
    found = curvature(table, theta, w, tight, torch.ones(9, dtype=torch.bool))
    assert found.joint
    assert found.log_det == pytest.approx(torch.logdet(hessian).item(), rel=1e-6)
    torch.testing.assert_close(found.variances.flatten(), torch.linalg.inv(hessian).diagonal(), rtol=1e-5, atol=1e-9)
    own = coefficient_variances(annotator_sums(table, theta, w, louis=True), tight)
    blocks = torch.stack([torch.linalg.inv(hessian[3 * k : 3 * k + 3, 3 * k : 3 * k + 3]).diagonal() for k in range(9)])
    torch.testing.assert_close(own, blocks, rtol=1e-5, atol=1e-9)


def test_newton_reaches_the_maximum_of_the_m_step(problem):
    table, theta, _ = problem
    population = expected_population(table.names, ["slot"], LabelModelSettings())
    w = torch.rand(60, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for _ in range(12):
        theta = newton_step(theta, annotator_sums(table, theta, w, louis=False), population)
    gradient = annotator_sums(table, theta, w, louis=False).gradient - (theta - population.mean) / population.variance
    assert gradient.abs().max() < 1e-8


def test_the_fit_is_a_stationary_point_of_the_log_posterior(problem):
    table, _, prior = problem
    settings = LabelModelSettings(tolerance=1e-9, max_iterations=3000)
    population = expected_population(table.names, ["slot"], settings)
    fit = fit_member(table, prior, population, share_start(table), settings)
    assert fit.converged
    slope = torch.autograd.functional.jacobian(lambda x: log_posterior(table, x, fit.population), fit.theta)
    assert slope.abs().max() < 1e-4


def test_an_annotator_without_votes_is_the_population():
    table = vote_table(make([0.9, 0.8, 0.7], 40, 3).votes, 4)
    settings = LabelModelSettings()
    fit = fit_member(
        table, PairPrior.flat(40), expected_population(table.names, [], settings), share_start(table), settings
    )
    assert fit.theta[3].item() == pytest.approx(fit.population.mean.item(), abs=0.02)
    assert fit.errors[3] > fit.errors[:3].max()


def test_anchors_are_certain_and_the_share_is_learnt():
    crowd = make(spread_of_skills(8, 4), 400, 5, seed=1)
    # Turned so that the first response is better in four of five pairs.
    keep = crowd.better | (torch.rand(400, generator=torch.Generator().manual_seed(1)) < 0.25)
    votes = Votes(crowd.votes.annotator[keep], crowd.votes.sign[keep])
    pairs = int(keep.sum())
    gold = torch.zeros(pairs, dtype=torch.float64)
    gold[:3] = torch.tensor([1.0, -1.0, 1.0])
    table, settings = vote_table(votes, 8), LabelModelSettings()
    prior = PairPrior(torch.zeros(pairs).double(), gold, {"slot": torch.ones(pairs).double()}, {"slot": 0.0})
    population = expected_population(table.names, [], settings)
    fit = fit_member(table, prior, population, share_start(table, gold), settings)
    assert fit.w[:3].tolist() == [1.0, 0.0, 1.0]
    assert torch.sigmoid(torch.tensor(fit.prior.shares["slot"])).item() == pytest.approx(
        crowd.better[keep].double().mean().item(), abs=0.04
    )


def test_a_rankings_pairs_count_as_one_label():
    """Halved counts of doubled votes leave everything where it was."""
    crowd = make(spread_of_skills(6, 2), 100, 4, seed=2)
    once, settings = vote_table(crowd.votes, 6), LabelModelSettings()
    doubled = Votes(crowd.votes.annotator.repeat(2, 1), crowd.votes.sign.repeat(2, 1), torch.full((200,), 0.5))
    twice = vote_table(doubled, 6)
    fits = []
    for table in (once, twice):
        population = expected_population(table.names, [], settings)
        fits.append(fit_member(table, PairPrior.flat(table.num_pairs), population, share_start(table), settings))
    torch.testing.assert_close(fits[0].theta, fits[1].theta)
    torch.testing.assert_close(fits[0].w, fits[1].w[:100])
