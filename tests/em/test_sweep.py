import itertools
import logging
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nemo_rpo.em.votes as votes_module
from nemo_rpo.em import EMSettings, Votes, full_batch_em, posterior

from .ranks import Ranks
from .worlds import World, make_world

NO_PRIOR = EMSettings(prior=(0.0, 0.0))


def sweep(world: World, start: float | list[float] = 0.9, em: EMSettings = NO_PRIOR, scale: float = 1.0):
    annotators = int(world.votes.annotator.max()) + 1
    eta = torch.tensor(start if isinstance(start, list) else [start] * annotators, dtype=torch.float64)
    return full_batch_em(world.delta * scale, world.votes, eta, em)


@pytest.mark.parametrize("start", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("truth", [0.25, 0.6, 0.9])
def test_theorem_4_1(truth, start):
    """Fixed, calibrated p: from any start in (0, 1) the iteration ends at the true reliability."""
    world = make_world([truth], pairs=20_000, spread=2.5)
    result = sweep(world, start)
    assert result.converged
    assert result.eta.item() == pytest.approx(truth, abs=0.015)


def test_every_annotator_is_recovered(world):
    result = sweep(world, em=EMSettings())
    realised = torch.zeros(5).index_add_(0, world.votes.annotator.flatten(), world.right.float().flatten())
    assert (result.eta - realised / result.counts).abs().max() < 0.03


@pytest.mark.parametrize(("scale", "expected"), [(1.0, 0.799), (0.1, 1.0), (50.0, 0.643)])
def test_the_scale_of_the_margins_matters(scale, expected):
    world = make_world([0.8], pairs=100_000)
    assert sweep(world, scale=scale).eta.item() == pytest.approx(expected, abs=0.008)


def test_uncalibrated_margins_have_an_interior_solution_only_if_both_means_exceed_one():
    votes = Votes.single(torch.zeros(4, dtype=torch.long))
    em = EMSettings(prior=(0, 0), sweep_max_iterations=20_000)
    for margins in ([2.0, 1.0, -1.0, 0.5], [3.0, 1.0, 0.5, -0.1], [-3.0, -1.0, -0.5, 0.1]):
        delta = torch.tensor(margins, dtype=torch.float64)
        eta = full_batch_em(delta, votes, torch.tensor([0.7]), em).eta
        interior = delta.neg().exp().mean() > 1 and delta.exp().mean() > 1
        assert (1e-3 < eta.item() < 1 - 1e-3) == bool(interior)


def test_margins_that_say_nothing_leave_eta_where_it_was():
    world = make_world([0.8], pairs=100)
    assert sweep(world, 0.77, scale=0.0).eta.item() == pytest.approx(0.77)


def test_label_switching_is_an_exact_symmetry(world):
    """(p, η) → (1-p, 1-η) explains the same votes equally well."""
    flat = EMSettings(prior=(2.0, 2.0))
    forward, mirrored = sweep(world, 0.8, flat), sweep(world, 0.2, flat, scale=-1.0)
    torch.testing.assert_close(mirrored.eta, 1 - forward.eta, rtol=0, atol=1e-12)
    torch.testing.assert_close(mirrored.log_likelihood, forward.log_likelihood)


def brute_force_log_posterior(world: World, eta: list[float], prior: tuple[float, float]) -> float:
    total = sum(prior[0] * math.log(x) + prior[1] * math.log(1 - x) for x in eta)
    for i, delta in enumerate(world.delta.tolist()):
        p = 1 / (1 + math.exp(-delta))
        evidence = 0.0
        for z in (True, False):
            joint = p if z else 1 - p
            for k, s in zip(world.votes.annotator[i].tolist(), world.votes.sign[i].tolist(), strict=True):
                if s:
                    joint *= eta[k] if (s > 0) == z else 1 - eta[k]
            evidence += joint
        total += math.log(evidence)
    return total


def test_objective_matches_enumeration_and_is_stationary_at_the_end():
    world = make_world([0.9, 0.6, 0.3], pairs=60, votes_per_pair=2)
    world.votes.sign[::7, 1] = 0
    em = EMSettings(prior=(3.0, 1.0), sweep_tolerance=1e-12)
    result = sweep(world, em=em)
    eta = result.eta.tolist()
    best = brute_force_log_posterior(world, eta, em.prior)
    assert result.log_likelihood.item() == pytest.approx(best, rel=1e-12)
    for k, step in itertools.product(range(3), (-1e-3, 1e-3)):
        nearby = [*eta[:k], eta[k] + step, *eta[k + 1 :]]
        assert brute_force_log_posterior(world, nearby, em.prior) < best


def test_the_result_is_a_fixed_point_in_its_own_terms(world):
    em = EMSettings()
    result = sweep(world, em=em)
    w = posterior(world.delta, world.votes, result.eta.logit()).unsqueeze(-1)
    right = torch.where(world.votes.sign > 0, w, 1 - w).flatten()
    sums = torch.zeros(5, dtype=torch.float64).index_add_(0, world.votes.annotator.flatten(), right)
    torch.testing.assert_close(result.right_sums, sums)
    torch.testing.assert_close(result.eta, (sums + 3) / (result.counts + 4), rtol=0, atol=2e-6)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**16),
    prior=st.tuples(st.floats(0, 5), st.floats(0, 5)),
    tau=st.floats(0.2, 5),
    floor=st.sampled_from([None, 0.5]),
    start=st.floats(0.5, 0.99),
)
def test_the_objective_never_falls(seed, prior, tau, floor, start):
    """Iterating one M-step at a time: the observed log-posterior rises to rounding, clamp and floor included."""
    world = make_world([0.9, 0.6, 0.2], pairs=40, votes_per_pair=2, seed=seed)
    em = EMSettings(prior=prior, link_tau=tau, eta_floor=floor, sweep_max_iterations=1)
    eta, last = torch.full((3,), start, dtype=torch.float64), -math.inf
    for _ in range(12):
        result = full_batch_em(world.delta, world.votes, eta, em)
        eta, objective = result.eta, result.log_likelihood.item()
        assert objective >= last - 1e-10 * abs(objective)
        last = objective


def test_a_sparse_annotator_is_held_by_the_prior():
    votes = Votes(torch.tensor([[0], [0], [1]]), torch.tensor([[1], [1], [-1]]))
    delta = torch.tensor([9.0, 9.0, 9.0])
    eta = full_batch_em(delta, votes, torch.full((3,), 0.9), EMSettings()).eta
    assert eta.tolist() == pytest.approx([5 / 6, 3 / 5, 3 / 4], abs=1e-3)
    untouched = full_batch_em(delta, votes, torch.full((3,), 0.9), NO_PRIOR).eta
    assert untouched.tolist() == pytest.approx([1 - 1e-4, 1e-4, 0.9])


def test_pairs_without_evidence_change_nothing(world):
    padded = World(
        torch.cat((world.delta, torch.tensor([40.0, -3.0]))),
        Votes(
            torch.cat((world.votes.annotator, torch.zeros(2, 3, dtype=torch.long))),
            torch.cat((world.votes.sign, torch.zeros(2, 3))),
        ),
        world.right,
    )
    mine, theirs = sweep(world), sweep(padded)
    torch.testing.assert_close(mine.eta, theirs.eta, rtol=0, atol=1e-12)
    torch.testing.assert_close(mine.counts, theirs.counts)
    torch.testing.assert_close(mine.log_likelihood, theirs.log_likelihood)


def test_shards_end_at_the_same_eta_as_the_whole(world):
    whole = sweep(world)
    ranks = Ranks(3)
    # Unequal shards, one of them empty: the last rank of a small data set holds nothing.
    parts = [slice(0, 2500), slice(2500, 4000), slice(4000, 4000)]

    def work(rank: int):
        rows = parts[rank]
        votes = Votes(world.votes.annotator[rows], world.votes.sign[rows])
        eta = torch.full((5,), 0.9, dtype=torch.float64)
        return full_batch_em(world.delta[rows], votes, eta, NO_PRIOR, ranks.collectives(rank).all_reduce)

    results = ranks.run(work)
    for result in results:
        assert torch.equal(result.eta, results[0].eta)
        assert result.iterations == whole.iterations
        assert torch.equal(result.eta, whole.eta)
        assert torch.equal(result.right_sums, whole.right_sums)
        torch.testing.assert_close(result.log_likelihood, whole.log_likelihood)
        torch.testing.assert_close(result.counts, whole.counts)


def test_memory_is_bounded_by_chunks_that_change_nothing(world, monkeypatch):
    whole = sweep(world)
    monkeypatch.setattr(votes_module, "_CHUNK_VOTES", 1000)
    chunked = sweep(world)
    assert torch.equal(chunked.eta, whole.eta) and chunked.iterations == whole.iterations


def test_narrow_storage_is_widened_where_it_is_used(world):
    narrow = Votes(world.votes.annotator.int(), world.votes.sign.to(torch.int8))
    wide = sweep(world._replace(delta=world.delta.float().double()))
    assert torch.equal(sweep(world._replace(delta=world.delta.float(), votes=narrow)).eta, wide.eta)


def test_margins_that_are_no_numbers_count_on_no_rank():
    """What one rank has to leave out changes nothing for the others, and no rank waits for it."""
    bad = torch.tensor([float("nan"), float("inf"), -float("inf")])
    votes = Votes.single(torch.zeros(3, dtype=torch.long))
    margins = [torch.tensor([1.0, 0.2, -0.5]), bad]

    def work(collectives, rank: int):
        return full_batch_em(margins[rank], votes, torch.tensor([0.9]), NO_PRIOR, collectives.all_reduce)

    ranks = Ranks(2)
    found = ranks.run(lambda rank: work(ranks.collectives(rank), rank))
    alone = full_batch_em(margins[0], votes, torch.tensor([0.9]), NO_PRIOR)
    assert alone.counts.tolist() == [3.0]
    for result in found:
        assert torch.equal(result.eta, alone.eta) and torch.equal(result.counts, alone.counts)


def test_says_so_when_it_has_not_converged(world, caplog):
    with caplog.at_level(logging.WARNING, logger="nemo_rpo.em"):
        result = sweep(world, em=EMSettings(sweep_max_iterations=2))
    assert not result.converged and result.iterations == 2
    assert "raise model.rpo.sweep_max_iterations" in caplog.text


def test_one_iteration_is_one_m_step(world, caplog):
    result = sweep(world, em=EMSettings(prior=(0, 0), sweep_max_iterations=1))
    w = posterior(world.delta, world.votes, torch.full((5,), 0.9, dtype=torch.float64).logit()).unsqueeze(-1)
    right = torch.where(world.votes.sign > 0, w, 1 - w).flatten()
    sums = torch.zeros(5, dtype=torch.float64).index_add_(0, world.votes.annotator.flatten(), right)
    torch.testing.assert_close(result.eta, sums / result.counts)
