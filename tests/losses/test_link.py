"""The link: what Δ, log Z and ``exact`` promise the EM, for every loss."""

from __future__ import annotations

import math

import pytest
import torch

from nemo_rpo.em.objective import robust_loss
from nemo_rpo.losses import build_loss

from .cases import VARIANTS, random_batch, variant_id, variant_loss

# ORPO's λ and the strength of scaled Bradley-Terry weigh an exact loss; their preference part does not sum to 1 itself.
_WEIGHTED_EXACT = {"orpo", "bt_scaled"}
P2L = {"p2l_bt", "p2l_rao_kupper", "p2l_bag"}


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_delta_is_the_difference_of_the_directions(variant):
    loss, x = variant_loss(variant), random_batch(30, seed=11)
    terms = loss.terms(x)
    importance = 1.0
    if terms.exact and variant[0] in _WEIGHTED_EXACT:
        importance = x.pair_columns["strength"] if variant[0] == "bt_scaled" else loss.beta
    torch.testing.assert_close(importance * terms.delta, terms.rejected - terms.chosen, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_exact_means_normalised(variant):
    loss, x = variant_loss(variant), random_batch(30, seed=12)
    terms = loss.terms(x)
    z = torch.logaddexp(-terms.chosen, -terms.rejected)
    if not terms.exact:
        assert (z.abs() > 1e-6).any()
        torch.testing.assert_close(terms.log_z(), z)
    elif variant[0] in _WEIGHTED_EXACT:
        importance = x.pair_columns["strength"] if variant[0] == "bt_scaled" else loss.beta
        unweighted = torch.logaddexp(-terms.chosen / importance, -terms.rejected / importance)
        torch.testing.assert_close(unweighted, torch.zeros_like(z), atol=1e-12, rtol=0)
    else:
        torch.testing.assert_close(z, torch.zeros_like(z), atol=1e-12, rtol=0)
        assert not terms.log_z().any()


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_induced_less_weighted_is_log_z(variant):
    """(A) - (B) = log Z, at any posterior and with any anchor."""
    terms = variant_loss(variant).terms(random_batch(30, seed=13))
    w = torch.rand(30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    difference = robust_loss(terms, w, "induced") - robust_loss(terms, w, "weighted")
    torch.testing.assert_close(difference, terms.log_z(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_turning_round_negates_the_link_and_exchanges_the_directions(variant):
    loss, x = variant_loss(variant), random_batch(30, seed=14)
    terms, turned = loss.terms(x), loss.terms(x.swapped())
    torch.testing.assert_close(turned.delta, -terms.delta)
    assert torch.equal(turned.chosen, terms.rejected)
    assert torch.equal(turned.rejected, terms.chosen)


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_the_label_can_be_doubted(variant):
    """No side column travels with the responses and makes both directions the same number."""
    x = random_batch(30, seed=15)
    x.pair_columns["tie"].zero_()
    assert (variant_loss(variant).terms(x).delta.abs() > 1e-6).all()


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_the_call_is_the_chosen_direction_with_its_anchor(variant):
    loss, x = variant_loss(variant), random_batch(30, seed=16)
    terms = loss.terms(x)
    anchor = 0 if terms.anchor_chosen is None else terms.anchor_chosen
    torch.testing.assert_close(loss(x), terms.chosen + anchor)


def test_an_undecided_pair_is_even_under_simpo():
    """The margin stays when the pair is turned round; else every undecided label would start at σ(-γ) = .2018."""
    x = random_batch(1)
    level = torch.full((1,), -30.0, dtype=torch.float64)
    same = {"policy_chosen": level, "policy_rejected": level, "chosen_length": 30 + 0 * level}
    x = type(x)(**same, rejected_length=30 + 0 * level)
    terms = build_loss("simpo", beta=2.5, gamma_beta_ratio=0.55).terms(x)
    assert terms.delta.item() == 0
    assert torch.sigmoid(-2.5 * torch.tensor(0.55)).item() == pytest.approx(0.2018, abs=1e-4)


def test_simpo_leaves_the_rao_kupper_tie_probability():
    x, gamma = random_batch(30, seed=17), 2.5 * 0.55
    terms = build_loss("simpo", beta=2.5, gamma_beta_ratio=0.55).terms(x)
    chosen, rejected = x.mean_policy()
    d = 2.5 * (chosen - rejected)
    # Rao-Kupper with threshold e^γ.
    nu = math.exp(gamma)
    tie = (nu**2 - 1) / ((1 + nu * d.exp()) * (1 + nu * (-d).exp()))
    torch.testing.assert_close(1 - terms.log_z().exp(), tie)


def test_anchors_stay_out_of_the_link_unless_asked():
    """With summed log-probs the longer response alone would decide: the NLLs differ by 60 nats."""
    x = random_batch(1)
    long, short = torch.full((1,), -80.0, dtype=torch.float64), torch.full((1,), -20.0, dtype=torch.float64)
    x = type(x)(long, short)
    apart = build_loss("cpo", beta=0.1, nll="sum").terms(x)
    together = build_loss("cpo", beta=0.1, nll="sum", link_terms="all").terms(x)
    assert apart.delta.item() == pytest.approx(-6.0)
    assert together.delta.item() == pytest.approx(-66.0)
    assert (apart.anchor_chosen.item(), apart.anchor_rejected.item()) == (80.0, 20.0)
    assert together.anchor_chosen is None
    assert not together.exact


def test_reference_free_losses_say_so():
    free = {name for name, _ in VARIANTS if variant_loss((name, {})).reference_free}
    assert free == {"simpo", "cpo", "orpo", "asft", "bt", "bt_margin", "bt_scaled", "gpm", "pal", "pro", "genrm", *P2L}


def test_losses_that_model_noise_or_need_a_temperature_say_so():
    losses = {name: build_loss(name) for name, _ in VARIANTS}
    assert {name for name, loss in losses.items() if loss.models_noise} == {
        "cdpo",
        "rdpo",
        "forward_corrected",
        "holder_dpo",
        "ropo",
        "dr_dpo",
        "udpo",
        "rgpo",
        "fa_dpo",
    }
    assert {name for name, loss in losses.items() if loss.needs_link_tau} == {
        "sppo",
        "sppo_hard",
        "inpo",
        "gpo",
        "egpo",
    }
    assert {name for name, loss in losses.items() if loss.takes_ties} == {"todo", *P2L}
