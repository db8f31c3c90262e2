import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_rpo.em import BufferSettings, EMSettings, Votes, estimate, full_batch_em

from .ranks import Ranks
from .worlds import make_crowd

SETTINGS = EMSettings(estimator="buffer")


def rmse(eta: torch.Tensor, truth: torch.Tensor) -> float:
    return (eta - truth).square().mean().sqrt().item()


@pytest.fixture(scope="module")
def crowd():
    return make_crowd(annotators=100, labels=6000, votes_per_pair=1, population=(8.0, 2.0), seed=11)


@pytest.mark.parametrize("start", [0.6, 0.8, 0.99])
def test_the_start_is_forgotten(crowd, start):
    reference = estimate(crowd.delta, crowd.votes, torch.full((100,), 0.9), SETTINGS)
    found = estimate(crowd.delta, crowd.votes, torch.full((100,), start), SETTINGS)
    assert (found.eta - reference.eta).abs().max() < 0.01
    assert found.temperature.identified


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_the_scale_of_the_margins_does_not_matter(crowd, scale):
    start = torch.full((100,), 0.9)
    calibrated = estimate(crowd.delta, crowd.votes, start, SETTINGS)
    scaled = estimate(crowd.delta * scale, crowd.votes, start, SETTINGS)
    assert (scaled.eta - calibrated.eta).abs().max() < 0.01
    assert scaled.temperature.value / calibrated.temperature.value == pytest.approx(scale, rel=0.03)


def test_is_nearly_as_good_as_knowing_the_population_and_the_scale(crowd):
    found = estimate(crowd.delta * 3, crowd.votes, torch.full((100,), 0.9), SETTINGS)
    oracle = full_batch_em(crowd.delta, crowd.votes, torch.full((100,), 0.9), EMSettings(prior=(8.0, 2.0)))
    assert rmse(found.eta, crowd.eta) < rmse(oracle.eta, crowd.eta) + 0.01


def test_eta_stays_while_the_margins_say_nothing(crowd):
    start = torch.linspace(0.6, 0.95, 100, dtype=torch.float64)
    found = estimate(crowd.delta * 0.01, crowd.votes, start, SETTINGS)
    assert found.sweep is None and torch.equal(found.eta, start)
    assert found.information < 0.05 and "too little information" in found.temperature.reason


def test_information_of_single_labels_is_the_margins_own(crowd):
    found = estimate(crowd.delta, crowd.votes, torch.full((100,), 0.9), SETTINGS)
    expected = (2 * torch.sigmoid(crowd.delta) - 1).square().mean().item()
    assert found.information == pytest.approx(expected, rel=1e-9)


def test_other_labels_of_the_pair_are_information_too():
    grouped = make_crowd(annotators=40, labels=4000, votes_per_pair=4, population=(8.0, 2.0), seed=3)
    found = estimate(grouped.delta * 0, grouped.votes, torch.full((40,), 0.8), SETTINGS)
    assert found.information > 0.5
    assert rmse(found.eta, grouped.eta) < 0.8 * grouped.eta.std()
    assert not found.temperature.identified, "margins of zero have no scale"


def test_ties_and_empty_data_are_no_information():
    votes = Votes(torch.zeros(5, 1, dtype=torch.long), torch.zeros(5, 1))
    lenient = replace(SETTINGS, buffer=BufferSettings(min_information=0.0))
    found = estimate(torch.ones(5), votes, torch.tensor([0.9]), lenient)
    assert found.sweep is None and found.eta.item() == pytest.approx(0.9)


def test_each_fit_can_be_turned_off(crowd):
    start = torch.full((100,), 0.9)
    plain = replace(SETTINGS, buffer=BufferSettings(fit_prior=False, fit_temperature=False))
    found = estimate(crowd.delta, crowd.votes, start, plain)
    swept = full_batch_em(crowd.delta, crowd.votes, start, EMSettings(sweep_tolerance=1e-4))
    assert torch.equal(found.eta, swept.eta) and found.prior == (3.0, 1.0)
    assert "fit_temperature is off" in found.temperature.reason
    fixed_tau = estimate(
        crowd.delta * 3, crowd.votes, start, replace(plain, link_tau=3.0, buffer=BufferSettings(fit_temperature=False))
    )
    assert fixed_tau.temperature.value == 3.0 and rmse(fixed_tau.eta, crowd.eta) < 0.1


@pytest.mark.parametrize("votes_per_pair", [1, 3])
def test_shards_end_where_the_whole_ends(votes_per_pair):
    crowd = make_crowd(annotators=30, labels=3000, votes_per_pair=votes_per_pair, population=(8.0, 2.0), seed=7)
    start = torch.full((30,), 0.9, dtype=torch.float64)
    whole = estimate(crowd.delta, crowd.votes, start, SETTINGS)
    pairs = len(crowd.delta)
    parts = [slice(0, pairs // 5), slice(pairs // 5, pairs), slice(pairs, pairs)]
    ranks = Ranks(3)

    def work(rank: int):
        votes = Votes(crowd.votes.annotator[parts[rank]], crowd.votes.sign[parts[rank]])
        return estimate(crowd.delta[parts[rank]], votes, start, SETTINGS, ranks.collectives(rank))

    results = ranks.run(work)
    for result in results:
        assert torch.equal(result.eta, results[0].eta)
        assert result.prior == results[0].prior and result.temperature == results[0].temperature
        torch.testing.assert_close(result.eta, whole.eta, rtol=0, atol=1e-6)
        assert math.isclose(result.temperature.value, whole.temperature.value, rel_tol=1e-6)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**16), scale=st.floats(-2, 4), one_sided=st.booleans(), votes_per_pair=st.integers(1, 4))
def test_odd_data_give_finite_estimates(seed, scale, one_sided, votes_per_pair):
    """Unrelated margins of any size, ties, repeated annotators, unanimous crowds: finite and within the clamp."""
    generator = torch.Generator().manual_seed(seed)
    annotators, pairs = 1 + seed % 20, 1 + seed % 150
    delta = torch.randn(pairs, generator=generator) * 10**scale
    sign = torch.randint(-1, 2, (pairs, votes_per_pair), generator=generator)
    annotator = torch.randint(annotators, sign.shape, generator=generator)
    votes = Votes(annotator, sign.abs() if one_sided else sign)
    lenient = replace(SETTINGS, buffer=BufferSettings(min_information=0.0))
    found = estimate(delta, votes, torch.full((annotators,), 0.9), lenient)
    assert (found.eta >= 1e-4).all() and (found.eta <= 1 - 1e-4).all()
    assert all(math.isfinite(x) and x > 0 for x in found.prior) and found.temperature.value > 0


@pytest.mark.parametrize("votes_per_pair", [1, 4])
def test_a_search_near_the_last_fit_ends_where_a_cold_one_does(votes_per_pair):
    """The last fit knew half of the margins."""
    crowd = make_crowd(annotators=100, labels=6000, votes_per_pair=votes_per_pair, population=(8.0, 2.0), seed=11)
    half, start = slice(0, len(crowd.delta) // 2), torch.full((100,), 0.9)
    before = estimate(crowd.delta[half], Votes(*(of[half] for of in crowd.votes[:2])), start, SETTINGS)
    assert before.population is not None
    cold = estimate(crowd.delta, crowd.votes, start, SETTINGS)
    warm = estimate(crowd.delta, crowd.votes, before.eta, SETTINGS, near=before.population)
    torch.testing.assert_close(warm.eta, cold.eta, rtol=0, atol=2e-3)
    assert warm.prior == pytest.approx(cold.prior, rel=0.03)
    assert math.log(warm.temperature.value / cold.temperature.value) == pytest.approx(0, abs=0.01)
    assert (warm.temperature.weight > 0) == (cold.temperature.weight > 0)
