"""Errors of one annotator's reliability where margins have many scales."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nemo_rpo.em import EMSettings, Votes, estimate
from nemo_rpo.em.fit.standard_error import standard_errors
from nemo_rpo.em.fit.unknown_link import error_under_unknown_link

ETA = 0.8


def world(seed: int, spread: float, pairs: int = 4000) -> tuple[Tensor, Votes, float]:
    """Margins that are calibrated but for a scale of each pair's own, labels right with probability η, and their share
    of right ones."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(pairs, generator=generator, dtype=torch.float64)

    delta = 2 * normal()
    better = torch.rand(pairs, generator=generator, dtype=torch.float64) < torch.sigmoid(delta)
    right = torch.rand(pairs, generator=generator, dtype=torch.float64) < ETA
    sign = torch.where(better == right, 1.0, -1.0)
    votes = Votes(torch.zeros(pairs, 1, dtype=torch.long), sign.unsqueeze(-1))
    return delta * (spread * normal()).exp(), votes, right.double().mean().item()


def fitted(delta: Tensor, votes: Votes) -> tuple[float, EMSettings]:
    found = estimate(delta, votes, torch.tensor([0.9], dtype=torch.float64), EMSettings(eta_floor=0.5))
    return found.eta.item(), EMSettings(prior=found.prior, link_tau=found.temperature.value)


def error(delta: Tensor, votes: Votes, eta: float, settings: EMSettings, reduce=lambda _: None) -> float:
    return error_under_unknown_link(delta, votes, eta, settings.prior, settings.link_tau, reduce)


def test_intervals_allow_for_margins_of_many_scales():
    """What a policy that is still learning leaves: one scale is fitted to the rise of agreement, which makes η too low,
    and says so with a small error. With the shape unknown too most intervals hold."""
    inside, with_one_scale = 0, 0
    for seed in range(6):
        delta, votes, truth = world(seed, spread=0.7)
        eta, settings = fitted(delta, votes)
        stated = standard_errors(
            delta, votes, torch.tensor([eta], dtype=torch.float64), settings, scale_fitted=True
        ).item()
        assert stated == pytest.approx(error(delta, votes, eta, settings))
        inside += abs(eta - truth) < 1.96 * stated
        known = standard_errors(delta, votes, torch.tensor([eta], dtype=torch.float64), settings).item()
        with_one_scale += abs(eta - truth) < 1.96 * known
    assert with_one_scale == 0 and inside >= 4


def test_where_there_is_one_scale_the_shape_is_unknown_all_the_same():
    delta, votes, truth = world(7, spread=0.0)
    eta, settings = fitted(delta, votes)
    known = standard_errors(delta, votes, torch.tensor([eta], dtype=torch.float64), settings).item()
    found = error(delta, votes, eta, settings)
    assert known < found < 0.12 and abs(eta - truth) < 1.96 * found


def test_ranks_add_their_pairs_up():
    delta, votes, _ = world(8, spread=1.0, pairs=1000)
    eta, settings = fitted(delta, votes)
    twice = Votes.all_of((votes, votes))
    of_two = error(delta, votes, eta, settings, lambda sums: sums.mul_(2))
    assert of_two == pytest.approx(error(delta.repeat(2), twice, eta, settings), rel=1e-9)


def test_no_labels_leave_the_prior():
    nothing = Votes(torch.zeros(0, 1, dtype=torch.long), torch.zeros(0, 1))
    found = error(torch.zeros(0, dtype=torch.float64), nothing, 0.75, EMSettings())
    assert 0 < found < 0.5
