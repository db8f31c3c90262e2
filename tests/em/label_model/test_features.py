"""Features of votes: what each means, what is unknown, and that flat and padded votes are the same votes."""

import math

import pytest
import torch

from nemo_rpo.em.label_model import FlatVotes, VoteColumns, VoteFeatures, fit_label_model, vote_features
from nemo_rpo.em.label_model.coded_votes import vote_table
from nemo_rpo.em.label_model.features import sequence
from nemo_rpo.errors import DataError

from .crowds import make, spread_of_skills

NAN = math.nan


@pytest.fixture(scope="module")
def flat():
    return FlatVotes.of(make(spread_of_skills(8, 0), 200, 4, seed=2).votes)


def _noise(size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_known_values_are_standardised_and_unknown_ones_are_0(flat):
    votes = len(flat.pair)
    unknown = torch.arange(votes) % 3 == 0
    columns = VoteColumns(
        strength=torch.where(unknown, NAN, 3 + 2 * _noise(votes) + 5 * flat.annotator),
        seconds=torch.where(unknown, NAN, _noise(votes, 1).exp()),
        confidence=torch.full((votes,), 4.0),
        lengths=torch.where(torch.arange(200)[:, None] % 5 == 0, 0.0, _noise((200, 2), 2).exp()),
    )
    found = vote_features(flat, columns)
    assert set(found.skill) == {"strength", "seconds"} and set(found.leaning) == {"length"}
    for values in found.skill.values():
        assert (values[unknown] == 0).all()
        assert values[~unknown].std().item() == pytest.approx(1, abs=0.03)
    # An annotator's skill is the skill at the mean of the own votes.
    own = torch.zeros(8).index_add_(0, flat.annotator, found.skill["strength"]) / torch.bincount(flat.annotator)
    assert own.abs().max() < 0.5
    known = flat.pair % 5 != 0
    length = found.leaning["length"]
    assert (length[~known] == 0).all() and length[known].square().mean().item() == pytest.approx(1, abs=0.02)


def test_the_length_turns_with_the_pair_and_the_rest_stays(flat):
    lengths, strength = _noise((200, 2)).exp(), _noise(len(flat.pair))
    here = vote_features(flat, VoteColumns(lengths=lengths, strength=strength))
    turned = vote_features(flat, VoteColumns(lengths=lengths.flip(-1), strength=strength))
    torch.testing.assert_close(turned.leaning["length"], -here.leaning["length"])
    torch.testing.assert_close(turned.skill["strength"], here.skill["strength"])


def test_a_slot_is_kept_where_it_is_known_at_all_even_if_it_never_varies(flat):
    never, always = torch.zeros(len(flat.pair)), torch.ones(len(flat.pair))
    assert vote_features(flat, VoteColumns(shown_first=never)).names() == []
    assert vote_features(flat, VoteColumns(shown_first=always)).names() == ["slot"]


def test_topics_have_a_column_each_but_the_rarest():
    votes = FlatVotes(torch.arange(8), torch.zeros(8, dtype=torch.long), torch.ones(8), 8)
    topic = torch.tensor([0, 0, 0, 0, 1, 1, 2, -1])
    found = vote_features(votes, VoteColumns(topic=topic, topic_names=("law", "art", "food"))).skill
    assert list(found) == ["topic:law", "topic:art"]
    assert found["topic:law"].mean().item() == pytest.approx(0, abs=1e-6) and found["topic:law"][7] == 0
    assert found["topic:law"][:7].square().mean().item() == pytest.approx(1)
    assert vote_features(votes, VoteColumns(topic=torch.zeros(8, dtype=torch.long))).names() == []


def test_the_sequence_is_each_annotators_own_and_ties_share_a_place():
    annotator = torch.tensor([0, 1, 0, 1, 0, 0, 1])
    time = torch.tensor([9.0, 1.0, 2.0, NAN, 4.0, 4.0, 0.0])
    found = sequence(annotator, time) / math.sqrt(12)
    expected = [3.5 / 4 - 0.5, 1.5 / 2 - 0.5, 0.5 / 4 - 0.5, 0.0, 0.0, 0.0, 0.5 / 2 - 0.5]
    assert found.tolist() == pytest.approx(expected)
    assert sequence(annotator, torch.full((7,), NAN)).tolist() == [0.0] * 7


def test_flat_and_padded_votes_are_the_same_table():
    crowd = make(spread_of_skills(6, 1), 50, 3, seed=4)
    padded = vote_table(crowd.votes, 6, VoteFeatures(leaning={"slot": crowd.slot}))
    flat = FlatVotes.of(crowd.votes)
    mixed = torch.randperm(len(flat.pair), generator=torch.Generator().manual_seed(0))
    shuffled = FlatVotes(flat.pair[mixed], flat.annotator[mixed], flat.sign[mixed], 50)
    slot = crowd.slot.flatten()[mixed]
    table = vote_table(shuffled, 6, VoteFeatures(leaning={"slot": slot}))
    keys = [t.pair * 6 + t.annotator for t in (padded, table)]
    orders = [key.argsort() for key in keys]
    for one, other in zip(padded[:6], table[:6], strict=True):
        torch.testing.assert_close(one[orders[0]], other[orders[1]])


def test_a_stated_confidence_that_tells_right_from_wrong_is_taken():
    """Votes of high confidence are right, those of low confidence a coin: the EM without it cannot know."""
    crowd = make([0.75] * 10, 300, 4, seed=3)
    flat = FlatVotes.of(crowd.votes)
    confident = torch.rand(len(flat.pair), generator=torch.Generator().manual_seed(1)) < 0.5
    truth = torch.where(crowd.better, 1.0, -1.0)[flat.pair]
    coin = torch.where(torch.rand(len(truth), generator=torch.Generator().manual_seed(2)) < 0.5, 1.0, -1.0)
    votes = flat._replace(sign=torch.where(confident, truth, coin))
    features = vote_features(votes, VoteColumns(confidence=confident.double()))
    fit = fit_label_model(votes, 10, features)
    assert "confidence" in fit.leaning and fit.member.population.mean[1] > 0.5


def test_columns_of_other_shapes_are_refused(flat):
    with pytest.raises(DataError, match=r"the column 'strength' has shape \[3\]; expected \[800\]"):
        vote_features(flat, VoteColumns(strength=torch.zeros(3)))
    with pytest.raises(DataError, match=r"the feature 'slot' has shape \[3\]; expected \[800\], one value a vote"):
        vote_table(flat, 8, VoteFeatures(leaning={"slot": torch.zeros(3)}))
