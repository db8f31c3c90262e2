"""Completions judged alone: a pair whose other side is absent."""

from __future__ import annotations

import math

import pytest
import torch

from nemo_rpo.em import Votes
from nemo_rpo.em.e_step import posterior
from nemo_rpo.losses import PairLogprobs, build_loss

BETA, Z = 0.2, 0.7


def judged(ratios: list[float], good: list[bool], z: float = Z) -> PairLogprobs:
    """Completions of these log-ratios (under a reference of -30) and labels."""
    up, ratio = torch.tensor(good), torch.tensor(ratios, dtype=torch.float64)
    zero = torch.zeros_like(ratio)
    sides = [torch.where(side, of, zero) for of in (ratio - 30, zero - 30) for side in (up, ~up)]
    lengths = [torch.where(side, 12, 0) for side in (up, ~up)]
    point = torch.full_like(ratio, z)
    return PairLogprobs(*sides, *lengths, pair_columns={"mismatched_kl": point, "mean_log_ratio": point})


RATIOS, GOOD = [2.5, -1.0, 0.3, 4.0, Z], [True, True, False, False, True]
X = judged(RATIOS, GOOD)


def sigmoid(u: float) -> float:
    return 1 / (1 + math.exp(-u))


def utilities(z: float) -> list[float]:
    return [BETA * (a - z) * (1 if up else -1) for a, up in zip(RATIOS, GOOD, strict=True)]


@pytest.mark.parametrize(("name", "z"), [("kto", Z), ("apo_zero_unpaired", 0.0)])
def test_value_losses(name: str, z: float) -> None:
    loss = build_loss(name, beta=BETA, desirable_weight=1.4, undesirable_weight=0.6)
    weights = [1.4 if up else 0.6 for up in GOOD]
    expected = [weight * (1 - sigmoid(u)) for weight, u in zip(weights, utilities(z), strict=True)]
    torch.testing.assert_close(loss(X), torch.tensor(expected, dtype=torch.float64))


def test_bco_is_the_logistic_loss() -> None:
    expected = [-math.log(sigmoid(u)) for u in utilities(Z)]
    terms = build_loss("bco", beta=BETA).terms(X)
    torch.testing.assert_close(terms.chosen, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(terms.delta, torch.tensor(utilities(Z), dtype=torch.float64))
    assert terms.exact


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired", "bco"])
def test_the_other_label_is_the_same_completion_on_the_other_side(name: str) -> None:
    options = {} if name == "bco" else {"desirable_weight": 1.4, "undesirable_weight": 0.6}
    loss = build_loss(name, beta=BETA, **options)
    terms, other = loss.terms(X), loss.terms(judged(RATIOS, [not up for up in GOOD]))
    torch.testing.assert_close(terms.rejected, other.chosen)
    torch.testing.assert_close(terms.delta, -other.delta)


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_both_labels_of_one_weight_lose_1_together(name: str) -> None:
    terms = build_loss(name, beta=BETA).terms(X)
    torch.testing.assert_close(terms.chosen + terms.rejected, torch.ones(len(X), dtype=torch.float64))
    assert terms.delta.abs().max() < 1


def test_a_flip_of_a_thumb_has_the_posterior_of_a_flip_of_a_pair() -> None:
    """Bayes by hand: the policy's odds times the odds of every vote."""
    delta = build_loss("bco", beta=BETA).terms(X).delta
    eta = torch.tensor([0.9, 0.2, 0.6], dtype=torch.float64)
    votes = Votes(
        torch.tensor([[0, 1], [1, 2], [2, 0], [0, 2], [1, 0]]),
        torch.tensor([[1.0, -1], [1, 1], [1, 0], [1, -1], [1, 1]]),
    )
    found = posterior(delta, votes, eta.logit())
    for i in range(len(X)):
        right, wrong = sigmoid(float(delta[i])), 1 - sigmoid(float(delta[i]))
        for k, sign in zip(votes.annotator[i].tolist(), votes.sign[i].tolist(), strict=True):
            if sign:
                right *= float(eta[k]) if sign > 0 else 1 - float(eta[k])
                wrong *= 1 - float(eta[k]) if sign > 0 else float(eta[k])
        assert float(found[i]) == pytest.approx(right / (right + wrong), abs=1e-6)


@pytest.mark.parametrize("name", ["kto", "bco"])
def test_the_reference_point_has_no_gradient(name: str) -> None:
    point = torch.full((2,), Z, requires_grad=True)
    policy = torch.tensor([-28.0, 0.0], requires_grad=True)
    x = PairLogprobs(
        policy, torch.tensor([0.0, -33.0]), torch.tensor([-30.0, 0.0]), torch.tensor([0.0, -30.0]),
        torch.tensor([3, 0]), torch.tensor([0, 5]), pair_columns={"mismatched_kl": point, "mean_log_ratio": point},
    )  # fmt: skip
    build_loss(name)(x).sum().backward()
    assert policy.grad is not None and point.grad is None
