import itertools
from fractions import Fraction

import pytest
import torch

from nemo_rpo.em import Votes, posterior, posterior_logit

ETAS = torch.tensor([1e-4, 0.1, 0.5, 0.9, 1 - 1e-4], dtype=torch.float64)


def single(pairs: int) -> Votes:
    return Votes.single(torch.zeros(pairs, dtype=torch.long))


@pytest.mark.parametrize("eta", ETAS.tolist())
def test_equals_eq_4_where_eq_4_can_be_computed(eta):
    delta = torch.linspace(-30, 30, 241, dtype=torch.float64)
    p = torch.sigmoid(delta)
    # 1-p by σ(-Δ): the subtraction would lose the tail that the test is about.
    expected = p * eta / (p * eta + torch.sigmoid(-delta) * (1 - eta))
    w = posterior(delta, single(241), torch.tensor([eta], dtype=torch.float64).logit())
    torch.testing.assert_close(w, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_extreme_margins_are_probabilities(dtype):
    delta = torch.tensor([-1e4, -100.0, -1.0, 0.0, 1.0, 100.0, 1e4], dtype=dtype)
    for logit in ETAS.logit().float():
        w = posterior(delta, single(7), logit.reshape(1))
        assert w.dtype == torch.promote_types(dtype, torch.float32)
        assert torch.isfinite(w).all() and (w >= 0).all() and (w <= 1).all()
        assert (w[1:] >= w[:-1]).all()
        assert (w[0], w[-1]) == (0, 1)


def test_a_margin_of_zero_gives_the_reliability():
    w = posterior(torch.zeros(5, dtype=torch.float64), Votes.single(torch.arange(5)), ETAS.logit())
    torch.testing.assert_close(w, ETAS)


def test_logit_is_the_margin_plus_the_votes():
    delta = torch.randn(5, dtype=torch.float64)
    logit = posterior_logit(delta, Votes.single(torch.arange(5)), ETAS.logit(), tau=2.5)
    torch.testing.assert_close(logit, delta / 2.5 + ETAS.logit())


def test_is_detached_from_the_margin():
    delta = torch.randn(5, requires_grad=True)
    assert not posterior(delta, single(5), torch.zeros(1)).requires_grad


@pytest.mark.parametrize("signs", list(itertools.product((1, 0, -1), repeat=3)))
def test_several_votes_match_enumeration_of_the_latent(signs):
    """Bayes' rule over z ∈ {chosen better, rejected better}, in rational numbers."""
    eta, p = [Fraction(9, 10), Fraction(3, 5), Fraction(1, 5)], Fraction(2, 3)
    joint = {True: p, False: 1 - p}
    for z in joint:
        for reliability, sign in zip(eta, signs, strict=True):
            if sign:
                joint[z] *= reliability if (sign > 0) == z else 1 - reliability
    expected = joint[True] / (joint[True] + joint[False])

    votes = Votes(torch.tensor([[0, 1, 2]]), torch.tensor([signs]))
    logit_eta = torch.tensor([float(x) for x in eta], dtype=torch.float64).logit()
    delta = torch.tensor([float(p)], dtype=torch.float64).logit()
    assert posterior(delta, votes, logit_eta).item() == pytest.approx(float(expected), rel=1e-12)


def test_an_oracle_decides_and_its_abstention_does_not():
    votes = Votes(torch.tensor([[0, 1], [0, 1], [0, 1]]), torch.tensor([[1, -1], [-1, 1], [0, 1]]))
    w = posterior(torch.zeros(3), votes, torch.tensor([float("inf"), 0.0]))
    assert w.tolist() == [1.0, 0.0, 0.5]
