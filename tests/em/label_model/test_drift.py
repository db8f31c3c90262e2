"""Drift: planted slopes are found with their annotators; without one nothing is."""

import itertools

import pytest
import torch

from nemo_rpo.em.label_model import (
    FlatVotes,
    LabelModelSettings,
    VoteColumns,
    VoteFeatures,
    fit_label_model,
    vote_features,
)
from nemo_rpo.em.label_model.coded_votes import vote_table
from nemo_rpo.em.label_model.drift import _scores, fit_drift
from nemo_rpo.em.label_model.features import middle_of_sequence, sequence
from nemo_rpo.em.label_model.member import PairPrior, expected_population, fit_member, share_start

ANNOTATORS, PAIRS, VOTES = 12, 360, 6


def crowd(drifting: int, seed: int, from_to: tuple[float, float] = (3.0, 0.0)):
    """The first ``drifting`` of twelve annotators go from one logit skill to the other, the others stay at 1.4."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    annotator = uniform(PAIRS, ANNOTATORS).argsort(-1)[:, :VOTES].flatten()
    pair = torch.arange(PAIRS).repeat_interleave(VOTES)
    time = uniform(PAIRS * VOTES)
    place = sequence(annotator, time) / 12**0.5 + 0.5
    skill = torch.where(annotator < drifting, from_to[0] + (from_to[1] - from_to[0]) * place, 1.4)
    better = torch.where(uniform(PAIRS) < 0.5, 1.0, -1.0)
    sign = torch.where(uniform(PAIRS * VOTES) < torch.sigmoid(skill), better[pair], -better[pair])
    votes = FlatVotes(pair, annotator, sign, PAIRS)
    return votes, vote_features(votes, VoteColumns(time=time))


def drift(drifting, seed, **kwargs):
    votes, features = crowd(drifting, seed, **kwargs)
    fit = fit_label_model(votes, ANNOTATORS, features, settings=LabelModelSettings(bootstrap=0))
    return fit_drift(votes, ANNOTATORS, features, fit)


def test_annotators_who_get_tired_are_named_with_their_curve():
    found = drift(4, seed=1)
    assert found.found and found.p_value < 1e-4
    assert found.surely[:4].all() and found.surely[4:].sum() <= 1
    assert (found.z[:4] < -2).all() and (found.change[:4] < -0.15).all() and (found.change_high[:4] < 0).all()
    truth = torch.sigmoid(3.0 - 3.0 * found.place)
    inside = (found.low[:4] <= truth) & (truth <= found.high[:4])
    assert inside.double().mean() >= 0.75
    assert found.curve.shape == (ANNOTATORS, 21)
    assert (found.low < found.curve).all() and (found.curve < found.high).all()


def test_nobody_drifts_where_nobody_does():
    found = [drift(0, seed) for seed in range(20, 26)]
    assert sum(of.found for of in found) <= 1
    z = torch.stack([of.z for of in found])
    assert z.square().mean().item() == pytest.approx(1, abs=0.5)


def test_the_variance_of_a_score_is_that_of_all_orders():
    """One annotator of five votes on pairs of known truth: every order of the places, enumerated."""
    pair, sign = torch.arange(5), torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])
    votes = FlatVotes(pair.repeat(2), torch.tensor([0] * 5 + [1] * 5), torch.cat((sign, torch.ones(5))), 5)
    table, settings = vote_table(votes, 2), LabelModelSettings(drift_labels=2)
    prior = PairPrior.flat(5)
    member = fit_member(table, prior, expected_population(table.names, [], settings), share_start(table), settings)
    own = torch.tensor([-1.4, -0.7, 0.0, 0.7, 1.4], dtype=torch.float64)
    scores, variances = [], []
    for order in itertools.permutations(range(5)):
        place = torch.zeros(10, dtype=torch.float64)
        place[table.annotator == 0] = own[list(order)]
        score, variance, _ = _scores(table, member, place, settings)
        scores.append(score[0])
        variances.append(variance[0])
    assert torch.stack(scores).square().mean().item() == pytest.approx(variances[0].item())
    assert torch.stack(scores).mean().item() == pytest.approx(0, abs=1e-12)


def test_without_times_there_is_no_drift_to_fit():
    votes, _ = crowd(0, 3)
    fit = fit_label_model(votes, ANNOTATORS, settings=LabelModelSettings(bootstrap=0))
    assert fit_drift(votes, ANNOTATORS, VoteFeatures(), fit) is None


def test_a_bend_is_no_line():
    place = torch.linspace(-(3**0.5), 3**0.5, 2001, dtype=torch.float64)
    bend = middle_of_sequence(place)
    assert bend.mean().item() == pytest.approx(0, abs=2e-3) and bend.square().mean().item() == pytest.approx(
        1, abs=4e-3
    )
    assert (bend * place).mean().abs() < 1e-9
