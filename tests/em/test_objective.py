import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nemo_rpo.em import Votes, bounded_loss, posterior, robust_loss
from nemo_rpo.losses import LossTerms


def dpo(margin: Tensor) -> LossTerms:
    return LossTerms(-F.logsigmoid(margin), -F.logsigmoid(-margin), margin, exact=True)


def ipo(margin: Tensor, beta: float = 0.1) -> LossTerms:
    return LossTerms((margin - 1 / (2 * beta)) ** 2, (-margin - 1 / (2 * beta)) ** 2, 2 * margin / beta, exact=False)


def e_step(delta: Tensor, eta: float) -> Tensor:
    logit_eta = torch.tensor([eta], dtype=torch.float64).logit()
    return posterior(delta, Votes.single(torch.zeros(delta.numel(), dtype=torch.long)), logit_eta)


MARGINS = torch.linspace(-6, 6, 25, dtype=torch.float64)


def test_a_perfect_annotator_gives_the_plain_loss():
    for objective in ("induced", "weighted"):
        torch.testing.assert_close(robust_loss(dpo(MARGINS), e_step(MARGINS, 1.0), objective), -F.logsigmoid(MARGINS))


def test_a_coin_gives_no_gradient():
    margin = MARGINS.clone().requires_grad_()
    for terms, delta in ((dpo(margin), margin), (ipo(margin), ipo(margin).delta)):
        (gradient,) = torch.autograd.grad(robust_loss(terms, e_step(delta, 0.5)).sum(), margin)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


def test_the_first_step_is_cdpos():
    margin = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    eps = 0.1
    conservative = -(1 - eps) * F.logsigmoid(margin) - eps * F.logsigmoid(-margin)
    robust = robust_loss(dpo(margin), e_step(margin, 1 - eps))
    torch.testing.assert_close(robust, conservative)
    (expected,) = torch.autograd.grad(conservative.sum(), margin)
    (actual,) = torch.autograd.grad(robust.sum(), margin)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("make", [dpo, ipo])
def test_the_objectives_differ_by_log_z(make):
    terms = make(MARGINS)
    w = torch.rand(MARGINS.shape, dtype=torch.float64)
    difference = robust_loss(terms, w, "induced") - robust_loss(terms, w, "weighted")
    torch.testing.assert_close(difference, terms.log_z(), rtol=1e-10, atol=1e-10)


def test_fishers_identity():
    """With w detached the gradient is p - w, and that is the observed likelihood's own."""
    eta = 0.8
    margin = MARGINS.clone().requires_grad_()
    w = e_step(margin, eta)
    (gradient,) = torch.autograd.grad(robust_loss(dpo(margin), w).sum(), margin)
    torch.testing.assert_close(gradient, torch.sigmoid(MARGINS) - w)
    observed = -torch.log(eta * torch.sigmoid(margin) + (1 - eta) * torch.sigmoid(-margin))
    (expected,) = torch.autograd.grad(observed.sum(), margin)
    torch.testing.assert_close(gradient, expected)


def test_gradient_weights_of_the_published_comparison():
    margin = torch.tensor([-6.0, -3.0, -1.0, 0.0, 1.0, 3.0, 6.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(robust_loss(dpo(margin), e_step(margin, 0.9)).sum(), margin)
    expected = torch.tensor([0.019, 0.262, 0.499, 0.400, 0.230, 0.042, 0.002], dtype=torch.float64)
    torch.testing.assert_close(-gradient, expected, rtol=0, atol=5e-4)


def test_the_posteriors_gradient_is_not_followed():
    margin = MARGINS.clone().requires_grad_()
    w = torch.sigmoid(margin * 2)
    (gradient,) = torch.autograd.grad(robust_loss(dpo(margin), w).sum(), margin)
    torch.testing.assert_close(gradient, torch.sigmoid(MARGINS) - w.detach())


def test_anchors_follow_the_side_they_belong_to():
    anchor_chosen, anchor_rejected = torch.tensor([5.0]), torch.tensor([7.0])
    delta = torch.tensor([1.0])
    terms = LossTerms(torch.tensor([1.0]), torch.tensor([2.0]), delta, False, anchor_chosen, anchor_rejected)
    w = torch.tensor([0.25])
    preference = -0.25 * F.logsigmoid(torch.tensor(1.0)) - 0.75 * F.logsigmoid(torch.tensor(-1.0))
    assert robust_loss(terms, w, "induced").item() == pytest.approx(preference.item() + 0.25 * 5 + 0.75 * 7)
    assert robust_loss(terms, w, "weighted").item() == pytest.approx(0.25 * 1 + 0.75 * 2 + 0.25 * 5 + 0.75 * 7)


@pytest.mark.parametrize("objective", ["induced", "weighted"])
@pytest.mark.parametrize("make", [dpo, ipo])
@given(w=st.sampled_from([0.0, 1e-30, 0.5, 1.0]), margin=st.floats(-1e4, 1e4, width=32))
def test_stays_finite(make, objective, w, margin):
    leaf = torch.tensor([margin], requires_grad=True)
    loss = robust_loss(make(leaf), torch.tensor([w]), objective)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    assert torch.isfinite(loss).all() and torch.isfinite(gradient).all()


def test_a_ruled_out_side_may_have_overflowed():
    terms = LossTerms(torch.tensor([1.0]), torch.tensor([float("inf")]), torch.tensor([float("inf")]), exact=True)
    assert robust_loss(terms, torch.tensor([1.0])).item() == 1.0


def test_low_precision_losses_are_combined_in_float32():
    terms = dpo(torch.randn(3))
    terms = replace(terms, chosen=terms.chosen.bfloat16(), rejected=terms.rejected.bfloat16())
    assert robust_loss(terms, torch.rand(3)).dtype == torch.float32


@pytest.mark.parametrize("u", [0.1, 1.0])
def test_the_bounded_loss_starts_as_the_induced_one_and_lets_go(u):
    """At Δ = 0 its gradient is ½ - q; far out it is 0, whichever side the label is on."""
    margin = torch.tensor([0.0, 80.0 / u, -80.0 / u], dtype=torch.float64, requires_grad=True)
    q = torch.full((3,), 0.9, dtype=torch.float64)
    loss = bounded_loss(dpo(margin), q, torch.tensor(u), q)
    (gradient,) = torch.autograd.grad(loss.sum(), margin)
    torch.testing.assert_close(gradient, torch.tensor([-0.4, 0.0, 0.0], dtype=torch.float64), rtol=0, atol=1e-12)
    assert loss[0].item() == pytest.approx(math.log(2))


def test_both_sides_of_the_bounded_loss_add_up_to_a_constant():
    """So labels flipped at random scale it and shift it, and leave its minimum where it is (Ghosh et al., 2017)."""
    u, certain = torch.tensor(0.7), torch.ones_like(MARGINS)
    one, other = (bounded_loss(dpo(MARGINS), q, u, q) for q in (certain, 1 - certain))
    torch.testing.assert_close(one + other, torch.full_like(MARGINS, 2 * math.log(2)))
    flipped = bounded_loss(dpo(MARGINS), 0.6 * certain, u, certain)
    torch.testing.assert_close(flipped - math.log(2), 0.2 * (one - math.log(2)))


def test_the_induced_loss_tends_to_the_bounded_one_as_the_evidence_goes():
    margin = MARGINS.clone().requires_grad_()
    eta = 0.5 + 1e-6
    (induced,) = torch.autograd.grad(robust_loss(dpo(margin), e_step(margin, eta)).sum(), margin)
    q = torch.full_like(MARGINS, eta)
    (bounded,) = torch.autograd.grad(bounded_loss(dpo(margin), q, torch.tensor(1.0), q).sum(), margin)
    torch.testing.assert_close(induced, bounded, rtol=1e-4, atol=0)


def test_an_importance_multiplies_the_bounded_loss():
    """ORPO's λ and a strength are no part of the link, and stay beside the anchor."""
    plain, heavy = dpo(MARGINS), dpo(MARGINS)
    heavy = replace(heavy, chosen=0.1 * heavy.chosen, rejected=0.1 * heavy.rejected)
    q, u = torch.full_like(MARGINS, 0.8), torch.tensor(0.5)
    torch.testing.assert_close(bounded_loss(heavy, q, u, q), 0.1 * bounded_loss(plain, q, u, q))
