"""Gradients of both directions and the link: finite differences, random upstream gradients, extremes, low precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nemo_rpo.em.objective import robust_loss
from nemo_rpo.losses import PairLogprobs, build_loss

from .cases import LEAVES, VARIANTS, leaves_of, random_batch, rows, variant_id, variant_loss, with_leaves


def every_output(loss, x):
    terms = loss.terms(x)
    outputs = (loss(x), terms.chosen, terms.rejected, terms.delta, terms.log_z())
    anchors = (terms.anchor_chosen, terms.anchor_rejected)
    return outputs + tuple(anchor for anchor in anchors if anchor is not None)


def leaf_names(name: str) -> tuple[str, ...]:
    # TDPO2 stops the gradient of one KL on purpose; finite differences cannot know. It has a test of its own below.
    return tuple(leaf for leaf in LEAVES if (name, leaf) != ("tdpo2", "kl"))


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_finite_differences(variant):
    loss, x, names = variant_loss(variant), random_batch(2, seed=5), leaf_names(variant[0])

    def outputs(*leaves):
        return tuple(
            output for output in every_output(loss, with_leaves(x, list(leaves), names)) if output.requires_grad
        )

    assert torch.autograd.gradcheck(outputs, tuple(leaves_of(x, names)))


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_random_upstream_gradient(variant):
    """The engine scales each pair by its own weight, so an upstream gradient of ones would prove too little."""
    loss, x, names = variant_loss(variant), random_batch(5, seed=6), leaf_names(variant[0])
    leaves = leaves_of(x, names)
    generator = torch.Generator().manual_seed(7)
    directions = [torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype) for leaf in leaves]
    step = 1e-6

    def shifted(sign: float):
        moved = [leaf.detach() + sign * step * way for leaf, way in zip(leaves, directions, strict=True)]
        return every_output(loss, with_leaves(x, moved, names))

    outputs = every_output(loss, with_leaves(x, leaves, names))
    for output, above, below in zip(outputs, shifted(1), shifted(-1), strict=True):
        if not output.requires_grad:
            continue
        upstream = torch.randn(output.shape, generator=generator, dtype=output.dtype)
        gradients = torch.autograd.grad(output, leaves, upstream, retain_graph=True, allow_unused=True)
        along = sum((g * way).sum() for g, way in zip(gradients, directions, strict=True) if g is not None)
        expected = (upstream * (above - below)).sum() / (2 * step)
        torch.testing.assert_close(along, expected, rtol=1e-5, atol=1e-6)


def test_tdpo2_moves_its_stop_gradient():
    """Turned round, the gradient is that of the loss with exchanged arguments, and not minus the old one."""
    x, loss, beta, alpha = random_batch(3, seed=8), build_loss("tdpo2", beta=0.2, alpha=0.5), 0.2, 0.5
    leaves = leaves_of(x, ("policy", "kl"))
    terms = loss.terms(with_leaves(x, leaves, ("policy", "kl")))
    pull = torch.sigmoid(-terms.delta.detach())
    got = torch.autograd.grad(terms.chosen.sum(), leaves, retain_graph=True, allow_unused=True)
    expected = (-beta * pull, beta * pull, None, alpha * beta * pull)
    turned = torch.autograd.grad(terms.rejected.sum(), leaves, allow_unused=True)
    push = torch.sigmoid(terms.delta.detach())
    expected_turned = (beta * push, -beta * push, alpha * beta * push, None)
    for gradient, wanted in zip((*got, *turned), (*expected, *expected_turned), strict=True):
        if wanted is None:
            assert gradient is None or not gradient.any()
        else:
            torch.testing.assert_close(gradient, wanted)


EXTREMES = (-1e5, -1e4, -300.0, -50.0, -1e-3, 0.0, 1e-3, 50.0, 300.0, 1e4, 1e5)


def extreme_batch() -> PairLogprobs:
    """Differences of every size up to 1e5 nats in float32, on either response, at soft and hard side columns."""
    spread = torch.tensor(EXTREMES)
    n = len(EXTREMES)
    x = rows(random_batch(1, dtype=torch.float32), torch.zeros(4 * n, dtype=torch.long))
    zero = torch.zeros(n)
    chosen = torch.cat([spread, zero, spread, spread])
    rejected = torch.cat([zero, spread, -spread, spread])
    columns = {
        **x.response_columns,
        "kl": (chosen.abs(), rejected.abs()),
        "turn_log_ratios": tuple(side[:, None].expand(-1, 4).clone() for side in (chosen, rejected)),
        "score": (chosen, rejected),
        "embedding": tuple(side[:, None] + torch.arange(6.0) for side in (chosen, rejected)),
        "base_logps": (x.reference_chosen, x.reference_rejected),
    }
    margin = torch.tensor([0.0, 0.5, 1e4, 3.0]).repeat(n)
    # Log-probs above 0 do not exist; the reference is what is extreme where the policy would be.
    policy = (x.reference_chosen + chosen.clamp(max=0), x.reference_rejected + rejected.clamp(max=0))
    reference = (x.reference_chosen - chosen.clamp(min=0), x.reference_rejected - rejected.clamp(min=0))
    return PairLogprobs(
        *policy,
        *reference,
        x.chosen_length,
        x.rejected_length,
        columns,
        {**x.pair_columns, "margin": margin, "tie": torch.tensor([0, 1]).repeat(2 * n)},
    )


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_extremes_stay_finite(variant):
    loss, x = variant_loss(variant), extreme_batch()
    leaves = leaves_of(x)
    x = with_leaves(x, leaves)
    terms = loss.terms(x)
    w = torch.sigmoid(terms.delta.detach() + 2.2)
    outputs = (*every_output(loss, x), robust_loss(terms, w, "induced"), robust_loss(terms, w, "weighted"))
    for output in outputs:
        assert output.dtype == torch.float32
        assert output.isfinite().all()
        if output.requires_grad:
            for gradient in torch.autograd.grad(output.sum(), leaves, retain_graph=True, allow_unused=True):
                assert gradient is None or gradient.isfinite().all()


@pytest.mark.parametrize("name", ["orpo", "asft"])
def test_odds_of_a_certain_response(name):
    """A short response the model is certain of has p = 1 in low precision, and odds of infinity."""
    zeros = torch.zeros(2, requires_grad=True)
    x = PairLogprobs(zeros, torch.tensor([-1.0, 0.0]), chosen_length=torch.ones(2), rejected_length=torch.ones(2))
    terms = build_loss(name).terms(x)
    assert all(t.isfinite().all() for t in (terms.chosen, terms.rejected, terms.delta))
    (gradient,) = torch.autograd.grad((terms.chosen + terms.rejected + terms.delta).sum(), zeros)
    assert gradient.isfinite().all()


def test_forward_kl_pulls_back_what_has_gone_far():
    """A clamped exponent would leave a chosen response at a = -60 without any gradient at all."""
    policy = torch.tensor([-80.0], requires_grad=True)
    fixed = torch.tensor([-20.0])
    loss = build_loss("f_dpo", divergence="forward_kl")(PairLogprobs(policy, fixed, fixed, fixed))
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    assert gradient.item() < 0
    assert gradient.square().isfinite().all()


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_precision_inputs_are_widened(variant, dtype):
    """What is computed from bf16 log-probs is exact to float32: only the inputs are rounded."""
    loss, x = variant_loss(variant), random_batch(4, dtype=dtype)
    for low, high in zip(every_output(loss, x), every_output(loss, in_float64(x)), strict=True):
        assert low.dtype == torch.float32
        torch.testing.assert_close(low.double(), high, rtol=2e-5, atol=2e-5)


def in_float64(x: PairLogprobs) -> PairLogprobs:
    def wide(tensor):
        return tensor.double() if tensor.is_floating_point() else tensor

    logps = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
    return replace(
        x,
        **{name: wide(getattr(x, name)) for name in logps},
        response_columns={name: (wide(left), wide(right)) for name, (left, right) in x.response_columns.items()},
        pair_columns={name: wide(column) for name, column in x.pair_columns.items()},
    )


def test_gradient_returns_in_the_precision_of_the_input():
    policy = torch.tensor([-42.0, -3.0], dtype=torch.bfloat16, requires_grad=True)
    fixed = torch.full((2,), -40.0, dtype=torch.bfloat16)
    loss = build_loss("dpo")(PairLogprobs(policy, fixed, fixed, fixed))
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    assert gradient.dtype == torch.bfloat16
    expected = -0.1 * F.sigmoid(-0.1 * (policy.detach().float() + 40))
    torch.testing.assert_close(gradient, expected.bfloat16())
