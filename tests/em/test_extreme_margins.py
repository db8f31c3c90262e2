"""Margins of a policy that has run away, and margins that are no numbers, through everything that reads margins."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nemo_rpo.em import (
    AnnotatorReliability,
    BufferSettings,
    EMSettings,
    Votes,
    estimate,
    evidence_of,
    full_batch_em,
    guards,
    standard_errors,
    warn_all,
)
from nemo_rpo.em.fit.empirical_bayes import Population, fit_population
from nemo_rpo.em.fit.marginal import adapt_quadrature, log_marginal_slope, vote_columns
from nemo_rpo.em.votes import with_finite_margin

from .worlds import World, make_world

START = torch.full((5,), 0.9, dtype=torch.float64)
BUFFER = EMSettings(estimator="buffer", buffer=BufferSettings())


@pytest.fixture(scope="module", params=[1e2, 1e3, 1e4])
def runaway(request: pytest.FixtureRequest, world: World) -> World:
    """The same labels under margins whose signs are right and whose sizes mean nothing."""
    return world._replace(delta=request.param * world.delta.sign())


def finite(*values: Tensor | float) -> bool:
    return all(torch.as_tensor(value, dtype=torch.float64).isfinite().all() for value in values)


def test_the_evidence_stays_a_number(runaway: World):
    eta = torch.tensor([0.95, 0.85, 0.7, 0.55, 0.2])
    first = Votes(runaway.votes.annotator[:, :1], runaway.votes.sign[:, :1])
    found = evidence_of(runaway.delta, first, EMSettings())
    assert finite(*found) and found.disagreement > 1 and found.undecided == 0
    # One label against a margin beyond every bound outweighs any number of labels with it.
    assert guards.overconfident_margins(found) is None
    assert "they are too large for the link" in guards.saturated_posteriors(found)
    agreeing = evidence_of(runaway.delta.abs(), Votes.single(torch.zeros(4000, dtype=torch.long)), EMSettings())
    assert agreeing.disagreement < 1e-40 and "reliabilities tend to 1" in guards.overconfident_margins(agreeing)
    assert warn_all(eta, torch.full((5,), 100.0), 0.9, found)


def test_the_evidence_is_exact_where_it_was_before():
    """The bound is out of reach of margins that a double can exponentiate twice over."""
    delta, votes = torch.tensor([-300.0, 2.0], dtype=torch.float64), Votes.single(torch.zeros(2, dtype=torch.long))
    found = evidence_of(delta, votes, EMSettings())
    assert found.disagreement == pytest.approx((math.exp(300) + math.exp(-2)) / 2, rel=1e-12)
    assert found.disagreement_error == pytest.approx(math.exp(300) / (2 * math.sqrt(2)), rel=1e-12)


def test_the_sweep_takes_the_margins_at_their_word(runaway: World):
    """With every margin certain, η is the share of labels on its side, up to the prior."""
    found = full_batch_em(runaway.delta, runaway.votes, START, EMSettings())
    sides = (runaway.votes.sign * runaway.delta.unsqueeze(-1)) > 0
    agreed, labels = torch.zeros(2, 5, dtype=torch.float64)
    agreed.index_add_(0, runaway.votes.annotator.flatten(), sides.double().flatten())
    labels.index_add_(0, runaway.votes.annotator.flatten(), torch.ones(sides.numel(), dtype=torch.float64))
    torch.testing.assert_close(found.eta, (agreed + 3) / (labels + 4))
    assert found.converged and finite(*found)
    assert finite(standard_errors(runaway.delta, runaway.votes, found.eta, EMSettings()))


def test_the_refit_survives_them(runaway: World):
    found = estimate(runaway.delta, runaway.votes, START, BUFFER)
    assert found.sweep is not None and found.sweep.converged
    assert finite(found.eta, *found.prior, found.information, found.temperature.gain)
    assert found.temperature.weight == 0 and found.temperature.reason
    fitted = replace(BUFFER, prior=found.prior, link_tau=found.temperature.value)
    assert finite(standard_errors(runaway.delta, runaway.votes, found.eta, fitted))
    assert finite(*evidence_of(runaway.delta, runaway.votes, fitted)[2:])


@pytest.mark.parametrize("votes_per_pair", [1, 3])
def test_the_population_is_fitted(votes_per_pair: int):
    world = make_world([0.95, 0.8, 0.7, 0.6, 0.3], pairs=500, votes_per_pair=votes_per_pair)
    delta, counts = 1e4 * world.delta, torch.full((5,), 100.0 * votes_per_pair)
    columns = vote_columns(delta, world.votes, START, counts, lambda rows: rows)
    assert finite(*log_marginal_slope(columns, adapt_quadrature(columns, (3.0, 1.0), 1.0), 3.0, 1.0, 1.0))
    fitted = fit_population(columns, Population((3.0, 1.0), 1.0), (3.0, 1.0), True, True)
    assert finite(*fitted.prior, fitted.tau)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_counts_for_nothing(world: World, bad: float):
    """Pairs with such margins are left out everywhere: the rest alone gives the very same figures."""
    spoilt = torch.arange(len(world.delta)) % 7 == 0
    delta = torch.where(spoilt, bad, world.delta)
    rest = world.delta[~spoilt], world.votes.of(~spoilt, world.delta.device)
    kept, votes = with_finite_margin(delta, world.votes)
    assert torch.equal(kept, rest[0]) and torch.equal(votes.annotator, rest[1].annotator)
    swept, alone = (full_batch_em(*data, START, EMSettings()) for data in ((delta, world.votes), rest))
    assert torch.equal(swept.eta, alone.eta) and torch.equal(swept.counts, alone.counts)
    refitted, alone = (estimate(*data, START, BUFFER) for data in ((delta, world.votes), rest))
    assert torch.equal(refitted.eta, alone.eta) and refitted.prior == alone.prior
    data = (delta, world.votes), rest
    here, there = (standard_errors(*margins, alone.eta, EMSettings()) for margins in data)
    assert torch.equal(here, there)
    here, there = (evidence_of(*margins, EMSettings()) for margins in data)
    torch.testing.assert_close(torch.tensor(here), torch.tensor(there), rtol=0, atol=0, equal_nan=True)


def test_nothing_but_such_margins_leaves_only_the_prior():
    delta, votes = torch.full((3,), math.nan), Votes.single(torch.tensor([0, 1, 1]))
    assert full_batch_em(delta, votes, START[:2], EMSettings()).eta.tolist() == [0.75, 0.75]
    assert estimate(delta, votes, START[:2], BUFFER).sweep is None
    assert evidence_of(delta, votes, EMSettings()).disagreement == math.inf


def test_a_posterior_that_is_no_number_is_no_evidence():
    em = AnnotatorReliability(1, EMSettings())
    em.accumulate(torch.tensor([0.5, math.nan]), Votes.single(torch.zeros(2, dtype=torch.long)), torch.ones(2).bool())
    assert em.pending.flatten().tolist() == [0.5, 1.0]
