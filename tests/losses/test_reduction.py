"""The loss of the global batch and its gradient, whatever the micro-batches and ranks."""

from __future__ import annotations

import math

import pytest
import torch

from nemo_rpo.losses import build_loss

from .cases import VARIANTS, random_batch, rows, variant_id, variant_loss


def engine(loss, x, policy, cuts, weight=None):
    """What an engine does: sums over micro-batches, one division of the accumulated gradient at the end."""
    reduction, sums = loss.reduction, torch.zeros(3, dtype=torch.float64)
    gradient = torch.zeros_like(policy)
    for start, stop in zip((0, *cuts), (*cuts, len(x)), strict=True):
        if start == stop:
            continue
        part = slice(start, stop)
        each = loss(rows(with_policy(x, policy), part))
        scale = 1.0 if weight is None else weight[part]
        surrogate = (scale * reduction.surrogate(each)).sum()
        gradient += torch.autograd.grad(surrogate, policy)[0]
        statistic, count = (scale * reduction.statistic(each)).sum(), (scale * torch.ones_like(each)).sum()
        assert not statistic.requires_grad
        sums += torch.stack([surrogate.detach(), statistic, count.detach()])
    return reduction.value(*sums), gradient / sums[1]


def with_policy(x, policy):
    return type(x)(
        policy, x.policy_rejected, x.reference_chosen, x.reference_rejected, x.chosen_length, x.rejected_length
    )


@pytest.mark.parametrize("cuts", [(), (1,), (3, 3, 7), (2, 4, 6, 8)], ids=str)
@pytest.mark.parametrize("beta_prime", [0.3, 1.0, 20.0])
def test_dr_dpo_over_micro_batches(cuts, beta_prime):
    x, loss = random_batch(10, seed=31), build_loss("dr_dpo", beta=0.5, beta_prime=beta_prime)
    policy = x.policy_chosen.clone().requires_grad_()
    each = build_loss("dpo", beta=0.5)(with_policy(x, policy))
    expected = -beta_prime * (torch.logsumexp(-each / beta_prime, 0) - math.log(10))
    value, gradient = engine(loss, x, policy, cuts)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, policy)[0])


def test_dr_dpo_with_masked_pairs():
    """A weight of 0 is a pair that is not there."""
    x, loss = random_batch(10, seed=32), build_loss("dr_dpo", beta=0.5)
    keep = torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 1, 0, 1], dtype=torch.float64)
    policy = x.policy_chosen.clone().requires_grad_()
    value, gradient = engine(loss, x, policy, (4,), keep)
    few = rows(with_policy(x, x.policy_chosen), keep.bool())
    alone = few.policy_chosen.clone().requires_grad_()
    expected, expected_gradient = engine(loss, few, alone, ())
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient[keep.bool()], expected_gradient)
    assert not gradient[~keep.bool()].any()


def test_dr_dpo_of_a_large_beta_prime_is_the_mean():
    x = random_batch(10, seed=33)
    policy = x.policy_chosen.clone().requires_grad_()
    value, gradient = engine(build_loss("dr_dpo", beta_prime=1e7), x, policy, (3,))
    expected, expected_gradient = engine(build_loss("dpo"), x, policy, (5,))
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v[0] != "dr_dpo"], ids=variant_id)
def test_every_other_loss_is_averaged(variant):
    loss, x = variant_loss(variant), random_batch(6, seed=34)
    each, reduction = loss(x), loss.reduction
    sums = reduction.surrogate(each).sum(), reduction.statistic(each).sum(), torch.tensor(6.0)
    torch.testing.assert_close(reduction.value(*sums), each.mean())
