import pytest
import torch

from nemo_rpo.em import EMSettings, Votes, estimate, full_batch_em, standard_errors
from nemo_rpo.em.fit import standard_error as module
from nemo_rpo.em.fit.empirical_bayes import log_tau_precision
from nemo_rpo.em.fit.standard_error import skewed

from .ranks import Ranks
from .worlds import World, make_crowd, make_world

EM = EMSettings(sweep_tolerance=1e-10)


def observed_log_posterior(eta: torch.Tensor, world: World, prior: tuple[float, float]) -> torch.Tensor:
    sign, reliability = world.votes.sign, eta[world.votes.annotator]
    if_chosen = torch.where(sign > 0, reliability, torch.where(sign < 0, 1 - reliability, 1.0)).prod(-1)
    if_rejected = torch.where(sign > 0, 1 - reliability, torch.where(sign < 0, reliability, 1.0)).prod(-1)
    p = torch.sigmoid(world.delta)
    log_prior = prior[0] * eta.log() + prior[1] * torch.log1p(-eta)
    return (p * if_chosen + (1 - p) * if_rejected).log().sum() + log_prior.sum()


@pytest.mark.parametrize("votes_per_pair", [1, 2, 4])
def test_is_the_curvature_of_the_observed_posterior(votes_per_pair):
    world = make_world([0.95, 0.8, 0.6, 0.3], pairs=300, votes_per_pair=votes_per_pair)
    world.votes.sign[::9, -1] = 0
    eta = full_batch_em(world.delta, world.votes, torch.full((4,), 0.9), EM).eta
    hessian = torch.autograd.functional.hessian(lambda e: observed_log_posterior(e, world, EM.prior), eta)
    expected = torch.linalg.inv(-hessian).diagonal().sqrt()
    torch.testing.assert_close(standard_errors(world.delta, world.votes, eta, EM), expected, rtol=1e-6, atol=0)


def test_above_the_limit_only_the_diagonal_is_formed(monkeypatch):
    world = make_world([0.9, 0.8, 0.6], pairs=400, votes_per_pair=3)
    eta = full_batch_em(world.delta, world.votes, torch.full((3,), 0.9), EM).eta
    exact = standard_errors(world.delta, world.votes, eta, EM)
    monkeypatch.setattr(module, "_DENSE_LIMIT", 2)
    diagonal = standard_errors(world.delta, world.votes, eta, EM)
    assert (diagonal <= exact).all() and (diagonal > 0.5 * exact).all()


def test_pieces_and_shards_change_nothing(monkeypatch):
    world = make_world([0.9, 0.8, 0.6], pairs=400, votes_per_pair=3)
    eta = torch.tensor([0.88, 0.8, 0.62])
    whole = standard_errors(world.delta, world.votes, eta, EM)
    monkeypatch.setattr(module, "_PRODUCT_ELEMENTS", 50)
    ranks = Ranks(2)

    def work(rank: int):
        rows = slice(0, 150) if rank else slice(150, 400)
        votes = Votes(world.votes.annotator[rows], world.votes.sign[rows])
        return standard_errors(world.delta[rows], votes, eta, EM, ranks.collectives(rank).all_reduce)

    for result in ranks.run(work):
        torch.testing.assert_close(result, whole)


def test_no_labels_leave_the_spread_of_the_prior():
    votes = Votes.single(torch.zeros(3, dtype=torch.long))
    errors = standard_errors(torch.zeros(3), votes, torch.tensor([0.75, 0.75]), EMSettings(prior=(6.0, 2.0)))
    assert errors[1].item() == pytest.approx((6 * 2 / 8**3) ** 0.5)
    assert errors[0] == errors[1], "margins of zero tell nothing about a single label"


def test_estimates_scatter_as_their_errors_say():
    crowd = make_crowd(annotators=150, labels=30_000, votes_per_pair=1, population=(8.0, 2.0), seed=4)
    em = EMSettings(prior=(8.0, 2.0))
    eta = full_batch_em(crowd.delta, crowd.votes, torch.full((150,), 0.8), em).eta
    scores = (eta - crowd.eta) / standard_errors(crowd.delta, crowd.votes, eta, em)
    assert 0.8 < scores.square().mean().sqrt() < 1.25
    assert scores.mean().abs() < 0.3


def test_known_answers_give_the_binomial_error():
    votes = Votes(torch.zeros(100, 1, dtype=torch.long), torch.ones(100, 1))
    votes.sign[:20] = -1
    flat = EMSettings(prior=(0.0, 0.0))
    errors = standard_errors(torch.full((100,), 50.0), votes, torch.tensor([0.8]), flat)
    assert errors.item() == pytest.approx((0.8 * 0.2 / 100) ** 0.5, rel=1e-6)


@pytest.mark.parametrize("votes_per_pair", [1, 3])
def test_with_the_scale_unknown_it_is_the_joint_curvature(votes_per_pair):
    world = make_world([0.95, 0.8, 0.6, 0.3], pairs=400, votes_per_pair=votes_per_pair)
    eta = full_batch_em(world.delta, world.votes, torch.full((4,), 0.9), EM).eta

    def log_posterior(parameters: torch.Tensor) -> torch.Tensor:
        scaled = world._replace(delta=world.delta / parameters[-1].exp())
        return (
            observed_log_posterior(parameters[:-1], scaled, EM.prior) - 0.5 * log_tau_precision() * parameters[-1] ** 2
        )

    at = torch.cat((eta, torch.zeros(1, dtype=torch.float64)))
    hessian = torch.autograd.functional.hessian(log_posterior, at)
    expected = torch.linalg.inv(-hessian).diagonal().sqrt()[:-1]
    found = standard_errors(world.delta, world.votes, eta, EM, scale_fitted=True)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert (found > standard_errors(world.delta, world.votes, eta, EM)).all()


@pytest.mark.parametrize(("right", "wrong"), [(10.0, 2.5), (3.0, 1.0), (0.7, 0.5), (400.0, 100.0)])
def test_a_skewed_posterior_has_its_distance_from_the_mode(right, wrong):
    """Of a Beta on the scale of the logit: drawn, against the curvature at its mode."""
    draws = torch.distributions.Beta(torch.tensor(right).double(), torch.tensor(wrong).double()).sample((400_000,))
    eta = torch.tensor([right / (right + wrong)], dtype=torch.float64)
    curved = (eta * (1 - eta) / (right + wrong)).sqrt()
    distance = (draws.clamp(1e-12, 1 - 1e-12).logit() - eta.logit()).square().mean().sqrt()
    found = skewed(curved, eta) / (eta * (1 - eta))
    assert found.item() == pytest.approx(distance.item(), rel=0.02)
    assert found >= curved / (eta * (1 - eta))


def test_intervals_of_few_labels_cover_as_they_say():
    """A long tail of annotators, most of whom are known by the fitted population and a handful of labels."""
    inside = []
    for seed in range(8):
        crowd = make_crowd(annotators=150, labels=3000, votes_per_pair=1, population=(10.0, 2.5), seed=seed)
        found = estimate(crowd.delta, crowd.votes, torch.full((150,), 0.9, dtype=torch.float64), EM)
        fitted = EMSettings(prior=found.prior, link_tau=found.temperature.value)
        error = skewed(standard_errors(crowd.delta, crowd.votes, found.eta, fitted, scale_fitted=True), found.eta)
        scale = found.eta * (1 - found.eta)
        inside.append(((found.eta.logit() - crowd.eta.logit()).abs() < 1.96 * error / scale).double().mean())
    assert 0.91 < torch.stack(inside).mean() < 0.98
