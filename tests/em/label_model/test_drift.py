"""Drift: planted slopes are found with their annotators; without one nothing is."""

import pytest
import torch

from nemo_rpo.em.label_model import FlatVotes, VoteColumns, fit_label_model, vote_features
from nemo_rpo.em.label_model.drift import drift_of
from nemo_rpo.em.label_model.features import middle_of_sequence, sequence

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


def fitted(drifting, seed, **kwargs):
    votes, features = crowd(drifting, seed, **kwargs)
    return fit_label_model(votes, ANNOTATORS, features)


def test_annotators_who_get_tired_are_named_with_their_curve():
    fit = fitted(4, seed=1)
    drift = drift_of(fit)
    assert fit.choices[0].name == "sequence" and fit.choices[0].taken
    assert drift.surely[:4].all() and not drift.surely[4:].any()
    assert (drift.change[:4] < -0.2).all() and (drift.change_high[:4] < 0).all()
    truth = torch.sigmoid(3.0 - 3.0 * drift.place)
    inside = (drift.low[:4] <= truth) & (truth <= drift.high[:4])
    assert inside.double().mean() >= 0.8
    assert (
        drift.curve.shape == (ANNOTATORS, 21) and (drift.low < drift.curve).all() and (drift.curve < drift.high).all()
    )


def test_nobody_drifts_where_nobody_does():
    assert all(drift_of(fitted(0, seed)) is None for seed in (11, 12))


def test_a_bend_is_no_line():
    place = torch.linspace(-(3**0.5), 3**0.5, 2001, dtype=torch.float64)
    bend = middle_of_sequence(place)
    assert bend.mean().item() == pytest.approx(0, abs=2e-3) and bend.square().mean().item() == pytest.approx(
        1, abs=4e-3
    )
    assert (bend * place).mean().abs() < 1e-9
