"""A label that counts twice is two labels, in all that is learnt about annotators; posteriors are the same."""

from __future__ import annotations

import pytest
import torch

from nemo_rpo.em import (
    AnnotatorReliability,
    EMSettings,
    Votes,
    estimate,
    evidence_of,
    full_batch_em,
    posterior,
    standard_errors,
)

from .worlds import World, make_world

ETA = torch.full((5,), 0.8, dtype=torch.float64)
COUNTS = torch.tensor([1, 2, 3, 1])


@pytest.fixture(scope="module", params=[1, 3])
def worlds(request) -> tuple[World, World]:
    """Pairs whose labels count for one, two or three, and the same with each pair as often."""
    world = make_world([0.9, 0.8, 0.7, 0.6, 0.3], pairs=800, votes_per_pair=request.param, spread=2.0)
    times = COUNTS.repeat(200)
    weighted = world._replace(votes=world.votes._replace(weight=times.float()))
    repeated = Votes(*(column.repeat_interleave(times, 0) for column in world.votes[:2]))
    return weighted, World(world.delta.repeat_interleave(times), repeated, world.right)


def test_the_sweep(worlds):
    ours, theirs = (full_batch_em(world.delta, world.votes, ETA, EMSettings()) for world in worlds)
    for name in ("eta", "log_likelihood", "counts", "right_sums"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-7, atol=1e-7)


def test_the_full_fit(worlds):
    ours, theirs = (estimate(world.delta, world.votes, ETA, EMSettings()) for world in worlds)
    torch.testing.assert_close(ours.eta, theirs.eta, rtol=0, atol=1e-5)
    assert ours.information == pytest.approx(theirs.information)
    assert (*ours.prior, ours.temperature.value) == pytest.approx((*theirs.prior, theirs.temperature.value), rel=1e-3)


def test_errors_and_evidence(worlds):
    settings = EMSettings()
    ours, theirs = (standard_errors(world.delta, world.votes, ETA, settings) for world in worlds)
    torch.testing.assert_close(ours, theirs)
    ours, theirs = (evidence_of(world.delta, world.votes, settings) for world in worlds)
    assert tuple(ours) == pytest.approx(tuple(theirs), nan_ok=True)


def test_the_running_sums(worlds):
    sums = []
    for world in worlds:
        em = AnnotatorReliability(5, EMSettings())
        em.accumulate(posterior(world.delta, world.votes, em.logit_eta), world.votes, torch.ones(len(world.delta)) > 0)
        sums.append(em.pending)
    torch.testing.assert_close(*sums, rtol=1e-7, atol=1e-7)


def test_posteriors_do_not_depend_on_it(worlds):
    world, _ = worlds
    logit_eta = ETA.logit()
    plain = posterior(world.delta, world.votes._replace(weight=None), logit_eta)
    assert torch.equal(posterior(world.delta, world.votes, logit_eta), plain)


def test_the_pairs_of_a_ranking_are_one_label():
    """Whatever the order in which its sixths are added up."""
    votes = Votes(torch.zeros(6, 1, dtype=torch.long), torch.ones(6, 1), torch.full((6,), 1 / 6))
    em = AnnotatorReliability(1, EMSettings())
    w = torch.tensor([0.1, 0.9, 0.5, 0.7, 0.3, 0.95])
    em.accumulate(w, votes, torch.ones(6) > 0)
    assert em.pending[1].item() == pytest.approx(1, abs=1e-7)
    em.commit()
    assert em.eta.item() == pytest.approx(0.9 * 0.9 + 0.1 * w.mean().item(), abs=1e-7)
