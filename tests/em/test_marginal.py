import math

import pytest
import torch

from nemo_rpo.em import Votes
from nemo_rpo.em.fit.marginal import (
    MAX_VOTES,
    VoteColumns,
    adapt_quadrature,
    log_marginal,
    log_marginal_slope,
    vote_columns,
)

from .worlds import make_world


def columns_of(margins: list[float], annotators: list[int], centre: list[float]) -> VoteColumns:
    margin = torch.tensor(margins, dtype=torch.float64)
    logits = torch.tensor(centre, dtype=torch.float64).logit()
    return VoteColumns(torch.tensor(annotators), margin, torch.zeros_like(margin), torch.ones_like(margin), logits)


def integrate(margins: list[float], a: float, b: float, tau: float) -> float:
    """log ∫ Π P(vote | η) Beta(η; a, b) dη by the midpoint rule."""
    eta = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    log = torch.zeros_like(eta)
    for margin in margins:
        m = 1 / (1 + math.exp(-margin / tau))
        log += torch.log(eta * m + (1 - eta) * (1 - m))
    log += (a - 1) * eta.log() + (b - 1) * torch.log1p(-eta)
    log -= math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return torch.logsumexp(log, 0).item() - math.log(200_000)


@pytest.mark.parametrize(("a", "b"), [(8.0, 2.0), (3.0, 1.0), (1.5, 1.2)])
@pytest.mark.parametrize("margins", [[0.0], [2.0], [-3.0], [1.0, 2.0, -0.5, 4.0], [1.0] * 60 + [-2.0] * 40])
def test_equals_the_integral_over_the_reliability(margins, a, b):
    tau = 1.3
    # The mode of logit η, where the EM's fixed point puts the centre.
    eta = a / (a + b)
    for _ in range(200):
        w = [1 / (1 + math.exp(-m / tau) * (1 - eta) / eta) for m in margins]
        eta = (sum(w) + a) / (len(w) + a + b)
    columns = columns_of(margins, [0] * len(margins), [eta])
    value = log_marginal(columns, adapt_quadrature(columns, (a, b), tau), a, b, tau)
    assert value == pytest.approx(integrate(margins, a, b, tau), abs=3e-3)


@pytest.mark.parametrize("at", [(4.0, 2.0, 1.0), (0.7, 0.5, 3.0), (40.0, 12.0, 0.4)])
def test_slopes_are_those_of_the_value(at):
    """Gradient and Hessian in (a, b, log τ), against differences of the value and of the gradient."""
    columns = columns_of([1.0, -2.0, 0.5, 3.0, 0.1], [0, 1, 1, 0, 2], [0.8, 0.6, 0.7])
    columns = columns._replace(earlier=torch.tensor([0.0, 0.7, -1.0, 0.0, 0.3], dtype=torch.float64))
    quadrature = adapt_quadrature(columns, (4.0, 2.0), 1.0)
    found, step = log_marginal_slope(columns, quadrature, *at), 1e-5
    assert found.value.item() == pytest.approx(log_marginal(columns, quadrature, *at), abs=1e-12)
    for i in range(3):
        around = []
        for sign in (1, -1):
            moved = list(at)
            moved[i] = at[i] * math.exp(sign * step) if i == 2 else at[i] + sign * step
            around.append(log_marginal_slope(columns, quadrature, *moved))
        by_value, by_gradient = ((around[0][j] - around[1][j]) / (2 * step) for j in (0, 1))
        assert found.gradient[i].item() == pytest.approx(by_value.item(), rel=1e-5, abs=1e-7)
        torch.testing.assert_close(found.hessian[i], by_gradient, rtol=1e-5, atol=1e-7)


def test_annotators_add_up():
    columns = columns_of([1.0, -2.0, 0.5, 3.0], [0, 1, 1, 0], [0.8, 0.6])
    whole = log_marginal(columns, adapt_quadrature(columns, (4.0, 2.0), 1.0), 4.0, 2.0, 1.0)
    parts = integrate([1.0, 3.0], 4, 2, 1) + integrate([-2.0, 0.5], 4, 2, 1)
    assert whole == pytest.approx(parts, abs=5e-3)


def test_certainties_that_contradict_stay_finite():
    columns = columns_of([1e4, -1e4], [0, 0], [0.5])
    found = log_marginal_slope(columns, adapt_quadrature(columns, (3.0, 1.0), 1.0), 3.0, 1.0, 1.0)
    assert all(of.isfinite().all() for of in found)


def test_columns_factorise_the_likelihood_of_a_pair():
    """Each vote given the earlier ones: with the reliabilities known, the factors multiply to the joint probability."""
    eta = torch.tensor([0.9, 0.7, 0.2], dtype=torch.float64)
    votes = Votes(torch.tensor([[2, 0, 1]]), torch.tensor([[1, -1, 0]]))
    columns = vote_columns(torch.tensor([0.4]), votes, eta, torch.tensor([1.0, 0.0, 1.0]), lambda rows: rows)
    m = torch.sigmoid(columns.margin + columns.earlier)
    reliability = torch.sigmoid(columns.centre)[columns.annotator]
    product = (reliability * m + (1 - reliability) * (1 - m)).prod().item()
    p = 1 / (1 + math.exp(-0.4))
    assert product == pytest.approx(p * 0.2 * 0.1 + (1 - p) * 0.8 * 0.9, rel=1e-6)


@pytest.mark.parametrize("annotators", [1, 40_000])
def test_large_data_is_thinned_by_annotators_or_by_pairs(annotators):
    pairs = 3 * MAX_VOTES
    ids = torch.arange(pairs) % annotators
    counts = torch.bincount(ids, minlength=annotators).double()
    eta = torch.full((annotators,), 0.8, dtype=torch.float64)
    columns = vote_columns(torch.ones(pairs), Votes.single(ids), eta, counts, lambda rows: rows)
    assert 0.9 * MAX_VOTES <= len(columns.margin) <= MAX_VOTES
    if annotators > 1:
        kept = torch.bincount(columns.annotator)
        assert kept.min() == counts.min(), "an annotator who takes part does so with all labels"


def test_an_annotator_with_more_votes_than_the_limit_does_not_shut_the_others_out():
    world = make_world([0.8, 0.7], pairs=50)
    counts = torch.tensor([25.0, 25.0])
    columns = vote_columns(world.delta, world.votes, torch.tensor([0.8, 0.7]).double(), counts, lambda rows: rows)
    assert len(columns.margin) == 50 and len(columns.centre) == 2
