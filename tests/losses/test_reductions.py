"""One loss is another at a particular setting: every such identity of the literature."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nemo_rpo.losses import PairLogprobs, build_loss
from nemo_rpo.losses.families.token_level import turn_weights

from .cases import random_batch

X = random_batch(12, seed=21)


def with_pair(x: PairLogprobs, **columns: torch.Tensor) -> PairLogprobs:
    return replace(x, pair_columns={**x.pair_columns, **columns})


def full(value: float) -> torch.Tensor:
    return torch.full((len(X),), value, dtype=torch.float64)


def same(left, right, **tolerance):
    """Equal in both directions and in the link, not only in the loss."""
    for field in ("chosen", "rejected", "delta"):
        torch.testing.assert_close(getattr(left, field), getattr(right, field), **tolerance)


def dpo(x=X, beta=0.1):
    return build_loss("dpo", beta=beta).terms(x)


@pytest.mark.parametrize(
    ("divergence", "alpha"), [("reverse_kl", 0.5), ("alpha", 0.0), ("alpha", 1e-9)], ids=["reverse", "zero", "limit"]
)
def test_f_dpo_is_dpo(divergence, alpha):
    same(build_loss("f_dpo", divergence=divergence, alpha=alpha).terms(X), dpo(), rtol=1e-6, atol=1e-6)


def test_alpha_one_is_forward_kl():
    same(
        build_loss("f_dpo", divergence="alpha", alpha=1.0).terms(X),
        build_loss("f_dpo", divergence="forward_kl").terms(X),
    )


def test_tdpo_is_dpo_without_divergence():
    same(build_loss("tdpo2", alpha=0.0).terms(X), dpo())
    still = replace(X, response_columns={**X.response_columns, "kl": (full(0), full(0))})
    same(build_loss("tdpo1").terms(still), dpo())


@pytest.mark.parametrize("name", ["dpo", "tdpo1", "tdpo2", "f_dpo", "cdpo", "ropo"])
def test_at_the_reference_the_loss_is_that_of_an_even_pair(name):
    start = replace(X, policy_chosen=X.reference_chosen, policy_rejected=X.reference_rejected)
    start = replace(start, response_columns={**X.response_columns, "kl": (full(0), full(0))})
    terms = build_loss(name).terms(start)
    assert not terms.delta.any()
    even = 4 * 14 / 15**2 * (math.log(2) + 7) if name == "ropo" else math.log(2)
    torch.testing.assert_close(terms.chosen, full(even))


def test_one_turn_is_dpo():
    ratios = tuple(F.pad(ratio[:, None], (0, 3)) for ratio in X.log_ratios())
    one = torch.ones(len(X), dtype=torch.long)
    turns = {"turn_log_ratios": ratios, "turns": (one, one)}
    same(build_loss("dmpo").terms(replace(X, response_columns=turns)), dpo())


def test_dmpo_forgets_all_but_the_first_turn_as_gamma_vanishes():
    first = tuple(ratio[:, 0] for ratio in X.response_columns["turn_log_ratios"])
    u = 0.1 * (first[0] - first[1])
    torch.testing.assert_close(build_loss("dmpo", gamma=1e-12).terms(X).delta, u)


@pytest.mark.parametrize(
    ("turns", "weights"),
    [(2, [1, 0.4118]), (3, [1, 0.5434, 0.2237]), (5, [1, 0.6394, 0.3870, 0.2103, 0.0866])],
)
def test_turn_weights(turns, weights):
    got = turn_weights(torch.tensor([float(turns)]), turns, 0.7)[0]
    torch.testing.assert_close(got, torch.tensor(weights), atol=5e-5, rtol=0)


def test_turn_weights_at_gamma_one_are_their_limit():
    turns = torch.arange(1, 6, dtype=torch.float64)
    torch.testing.assert_close(turn_weights(turns, 5, 1.0), turn_weights(turns, 5, 1 - 1e-7), rtol=1e-5, atol=1e-5)


def test_simpo_without_margin_and_length_is_reference_free_dpo():
    x = replace(X, chosen_length=full(1), rejected_length=full(1))
    bare = replace(x, reference_chosen=full(0), reference_rejected=full(0))
    same(build_loss("simpo", beta=0.1, gamma_beta_ratio=0.0).terms(x), dpo(bare))


def test_cpo_without_nll_is_dpo_against_a_uniform_reference():
    bare = replace(X, reference_chosen=full(0), reference_rejected=full(0))
    same(build_loss("cpo", cpo_alpha=0.0).terms(X), dpo(bare))


def test_orpo_is_asft_plus_log_z():
    orpo = build_loss("orpo", beta=1.0, nll_weight=0.0).terms(X)
    asft = build_loss("asft", beta=1.0, nll_weight=0.0).terms(X)
    torch.testing.assert_close(orpo.chosen, asft.chosen + asft.log_z())
    torch.testing.assert_close(orpo.rejected, asft.rejected + asft.log_z())
    torch.testing.assert_close(orpo.delta, asft.delta)


def test_asft_in_absolute_probabilities():
    """-(1+λ) log p_w - λ log(1 - p_l)."""
    p_w, p_l = (logp.exp() for logp in X.mean_policy())
    expected = -1.3 * p_w.log() - 0.3 * torch.log(1 - p_l)
    torch.testing.assert_close(build_loss("asft", beta=0.3)(X), expected)


def test_sppo_of_certain_win_rates_is_hard_sppo():
    x = with_pair(X, win_rate_chosen=full(1), win_rate_rejected=full(0))
    same(build_loss("sppo", beta=0.1).terms(x), build_loss("sppo_hard", beta=0.1).terms(x))


def test_gpo_of_half_scores_is_hard_sppo():
    x = with_pair(X, preference_score_chosen=full(0.5), preference_score_rejected=full(-0.5))
    x = replace(x, response_columns={"base_logps": (X.reference_chosen, X.reference_rejected)})
    same(build_loss("gpo", beta=0.1).terms(x), build_loss("sppo_hard", beta=0.1).terms(x))


def against_base(x: PairLogprobs = X) -> PairLogprobs:
    """The pairs with the previous iterate as their reference."""
    chosen, rejected = x.response_columns["base_logps"]
    return replace(x, reference_chosen=chosen, reference_rejected=rejected)


def test_inpo_at_its_ends_is_ipo():
    ipo = build_loss("ipo", beta=0.05)
    same(build_loss("inpo", beta=0.05, tau=0.0).terms(X), ipo.terms(against_base()))
    same(build_loss("inpo", beta=0.05, tau=0.05).terms(X), ipo.terms(X))


def test_onpo_is_ipo_with_the_inverse_step():
    same(build_loss("onpo", step_size=4.0).terms(X), build_loss("ipo", beta=0.25).terms(against_base()))


def test_egpo_of_a_difference_of_half_is_ipo():
    x = with_pair(X, win_rate_chosen=full(0.75), win_rate_rejected=full(0.25))
    same(build_loss("egpo", beta=0.2).terms(x), build_loss("ipo", beta=0.2).terms(x))


def test_egpo_is_rpo_sq_over_beta_squared():
    gap = X.pair_columns["win_rate_chosen"] - X.pair_columns["win_rate_rejected"]
    rpo = build_loss("rpo_sq", beta=0.2).terms(with_pair(X, margin=gap))
    egpo = build_loss("egpo", beta=0.2).terms(X)
    torch.testing.assert_close(egpo.chosen, rpo.chosen / 0.04)
    torch.testing.assert_close(egpo.delta, rpo.delta / 0.04)


def test_dno_prct_is_dpo_against_the_previous_iterate():
    same(build_loss("dno_prct").terms(X), dpo(against_base()))


def test_dno_of_equal_rewards_is_even():
    terms = build_loss("dno").terms(with_pair(X, margin=full(0)))
    assert not terms.delta.any()
    torch.testing.assert_close(terms.chosen, terms.rejected)


def test_mmpo_at_its_ends():
    certain = build_loss("mmpo", beta=0.1, gamma=1.0).terms(with_pair(X, margin=full(1e3)))
    same(certain, dpo())
    even = build_loss("mmpo", beta=0.1).terms(with_pair(X, margin=full(0)))
    assert not even.delta.any()


def test_mmpo_is_rpo_bwd_kl_plus_the_entropy_of_its_target():
    q = torch.sigmoid(1.7 * X.pair_columns["margin"])
    entropy = -q * q.log() - (1 - q) * torch.log1p(-q)
    mmpo = build_loss("mmpo", beta=0.2, gamma=1.7).terms(X)
    rpo = build_loss("rpo_bwd_kl", beta=0.2, gt_reward_scale=1.7).terms(X)
    torch.testing.assert_close(mmpo.chosen, rpo.chosen + entropy)
    torch.testing.assert_close(mmpo.rejected, rpo.rejected + entropy)
    torch.testing.assert_close(mmpo.delta, rpo.delta)


@pytest.mark.parametrize("name", ["rpo_sq", "rpo_bwd_kl", "rpo_fwd_kl"])
def test_reward_aware_losses_vanish_where_the_margins_agree(name):
    u = build_loss("dpo", beta=0.2).terms(X).delta
    torch.testing.assert_close(build_loss(name, beta=0.2)(with_pair(X, margin=u)), full(0), atol=1e-12, rtol=0)


def test_todo_without_ties_is_dpo():
    none = with_pair(X, tie=torch.zeros(len(X)))
    same(build_loss("todo", beta=0.1, theta=0.0).terms(none), dpo())


def test_todo_is_rao_kupper_and_sums_to_one():
    loss = build_loss("todo", beta=0.1, theta=-0.4)
    win, loss_, tie = loss.outcome_log_probs(X).exp().unbind(-1)
    torch.testing.assert_close(win + loss_ + tie, full(1))
    u, nu = dpo().delta, math.exp(0.4)
    torch.testing.assert_close(win, u.exp() / (u.exp() + nu))
    torch.testing.assert_close(tie, (nu**2 - 1) * u.exp() / ((u.exp() + nu) * (1 + nu * u.exp())))


def test_a_tie_says_nothing():
    terms = build_loss("todo", beta=0.1).terms(with_pair(X, tie=torch.ones(len(X))))
    assert not terms.delta.any()
    assert torch.equal(terms.chosen, terms.rejected)


def test_scaled_and_margin_bradley_terry_reduce_to_the_plain_one():
    plain = build_loss("bt").terms(X)
    one, zero = with_pair(X, strength=full(1)), with_pair(X, strength=full(0))
    same(build_loss("bt_scaled").terms(one), plain)
    same(build_loss("bt_scaled", link="scaled").terms(one), plain)
    same(build_loss("bt_margin").terms(zero), plain)


def test_pal_of_one_group_is_bradley_terry_to_the_bit():
    for scores in (X.response_columns["score"], tuple(score[:, None] for score in X.response_columns["score"])):
        x = replace(X, response_columns={"scores": scores}, pair_columns={"group_weight": full(1)[:, None]})
        same(build_loss("pal", groups=1).terms(x), build_loss("bt").terms(X), rtol=0, atol=0)


def test_general_preferences_are_skew_symmetric_and_may_be_cyclic():
    """Three answers on a circle, each beating the next: no reward could say so."""
    angle = 2 * math.pi / 3 * torch.arange(3, dtype=torch.float64)
    v = torch.stack([angle.cos(), angle.sin()], -1)
    x = PairLogprobs(None, None, response_columns={"embedding": (v, v.roll(-1, 0))})
    margin = build_loss("gpm").terms(x).delta
    assert (margin > 1).all()
    torch.testing.assert_close(build_loss("gpm").terms(x.swapped()).delta, -margin)


def test_bradley_terry_is_the_scalar_case_of_general_preferences():
    chosen, rejected = (torch.stack([s, torch.ones_like(s)], -1) for s in X.response_columns["score"])
    x = replace(X, response_columns={**X.response_columns, "embedding": (chosen, rejected)})
    same(build_loss("gpm", tau=1.0, normalize=False).terms(x), build_loss("bt").terms(x))


@pytest.mark.parametrize("name", ["cdpo", "rdpo"])
def test_without_noise_the_baselines_are_dpo(name):
    same(build_loss(name, label_smoothing=0.0).terms(X), dpo())


def test_rdpo_is_unbiased_under_flips():
    terms, clean, flip = build_loss("rdpo", label_smoothing=0.2).terms(X), dpo(), 0.2
    torch.testing.assert_close((1 - flip) * terms.chosen + flip * terms.rejected, clean.chosen)


def test_rdpo_is_unbounded_below_and_the_others_are_not():
    """A pair far on the wrong side pays rDPO without limit."""
    far = PairLogprobs(*(torch.tensor([value]) for value in (-1e4, 0.0, 0.0, -1e4)))
    far = far.swapped()
    assert build_loss("rdpo")(far).item() < -100
    for name in ("cdpo", "forward_corrected", "ropo"):
        assert build_loss(name)(far).item() >= 0


def test_forward_corrected_gradient_is_that_of_the_frozen_posterior():
    """Fisher's identity: RE-DPO with η frozen at 1-ε has this gradient, p - w with w = σ(u + logit η)."""
    policy = X.policy_chosen.clone().requires_grad_()
    x = replace(X, policy_chosen=policy)
    (gradient,) = torch.autograd.grad(build_loss("forward_corrected", label_smoothing=0.2)(x).sum(), policy)
    u = dpo().delta
    torch.testing.assert_close(gradient, 0.1 * (u.sigmoid() - torch.sigmoid(u + math.log(4))))


@pytest.mark.parametrize(
    ("name", "options", "table"),
    [
        ("dpo", {}, [0.998, 0.953, 0.731, 0.500, 0.269, 0.047, 0.003]),
        ("forward_corrected", {}, [0.019, 0.262, 0.499, 0.400, 0.230, 0.042, 0.002]),
        ("cdpo", {}, [0.898, 0.853, 0.631, 0.400, 0.169, -0.053, -0.098]),
        ("rdpo", {}, [1.123, 1.078, 0.856, 0.625, 0.394, 0.172, 0.128]),
    ],
)
def test_gradient_weights_of_the_noise_models(name, options, table):
    """-dL/ds at the margins -6 … 6, β absorbed; forward correction at ε = .1 is RE-DPO at η = .9."""
    s = torch.tensor([-6.0, -3, -1, 0, 1, 3, 6], requires_grad=True)
    zero = torch.zeros(7)
    (gradient,) = torch.autograd.grad(build_loss(name, beta=1.0, **options)(PairLogprobs(s, zero, zero, zero)).sum(), s)
    torch.testing.assert_close(-gradient, torch.tensor(table), atol=6e-4, rtol=0)


def test_udpo_is_forward_correction_at_the_same_odds_of_a_flip():
    """The catalogue's alias: ε = a/(1+a), and the paper's own loss is less by log(1+a) = -log(1-ε)."""
    udpo, corrected = build_loss("udpo", a=0.25).terms(X), build_loss("forward_corrected", label_smoothing=0.2).terms(X)
    same(udpo, corrected)
    p = dpo().delta.sigmoid()
    torch.testing.assert_close(udpo.chosen + math.log(1 - 0.2), -torch.log(p + 0.25 * (1 - p)))


def test_fa_dpo_without_features_is_forward_correction():
    corrected = build_loss("forward_corrected", label_smoothing=0.1).terms(X)
    same(build_loss("fa_dpo").terms(X), corrected)
    same(build_loss("fa_dpo", rate="column").terms(with_pair(X, flip_rate=full(0.1))), corrected)


def test_rgpo_of_a_certain_consensus_is_dpo_on_the_inferred_label():
    same(build_loss("rgpo").terms(with_pair(X, consensus=full(40))), dpo())
    same(build_loss("rgpo").terms(with_pair(X, consensus=full(-40))), dpo(X.swapped()))
    assert not build_loss("rgpo")(with_pair(X, consensus=full(0))).any()  # annotators who cancel say nothing


def test_redescending_losses_let_hopeless_pairs_go():
    s = torch.tensor([-30.0], requires_grad=True)
    zero = torch.zeros(1)
    (gradient,) = torch.autograd.grad(build_loss("holder_dpo", beta=1.0)(PairLogprobs(s, zero, zero, zero)).sum(), s)
    assert abs(gradient.item()) < 1e-12


def test_brain_on_two_samples_of_the_reference_is_dpo():
    certain = with_pair(X, margin=full(1e3))
    x = replace(certain, response_columns={"base_logps": (X.reference_chosen, X.reference_rejected)})
    same(build_loss("brain").terms(x), dpo(beta=1.0))


def test_averaged_log_probs_are_the_loss_of_scaled_log_probs():
    """``average_log_probs`` is one switch for every log-ratio loss: length 1 changes nothing."""
    one = replace(X, chosen_length=full(1), rejected_length=full(1))
    for name, average in itertools.product(("dpo", "hinge", "cdpo", "mmpo", "rpo_sq", "f_dpo"), (False, True)):
        torch.testing.assert_close(build_loss(name, average_log_probs=average)(one), build_loss(name)(X))
