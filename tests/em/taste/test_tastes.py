"""Noise or taste: two tastes are told apart, noise makes no group, and what cannot be told is refused."""

import pytest
import torch
import torch.nn.functional as F

from nemo_rpo.em import Votes
from nemo_rpo.em.label_model import FlatVotes, VoteFeatures
from nemo_rpo.em.label_model.coded_votes import vote_table
from nemo_rpo.em.label_model.coefficients import pair_sums
from nemo_rpo.em.label_model.member import PairPrior, expected_population, fit_member, share_start
from nemo_rpo.em.taste import TasteSettings, fit_tastes
from nemo_rpo.em.taste.groups import fit_groups, through_base
from nemo_rpo.errors import DataError

from .tastes import adjusted_rand_index, make


def test_two_tastes_are_found_with_their_annotators_and_truths():
    crowd = make([18, 12], labels=20, votes=10, seed=1)
    fit = fit_tastes(crowd.votes, 30, max_groups=2)
    assert fit.groups == 2 and fit.refused == ""
    assert adjusted_rand_index(fit.membership.argmax(-1), crowd.group) >= 0.9
    assert fit.share.tolist() == pytest.approx([0.6, 0.4], abs=0.07)
    for taste in (0, 1):
        found = fit.w[:, fit.membership[crowd.group == taste].mean(0).argmax()]
        assert ((found > 0.5) == crowd.better[:, taste]).double().mean() > 0.85
    same = (crowd.better[:, 0] == crowd.better[:, 1]).double().mean().item()
    assert fit.agree[0, 1].item() == pytest.approx(same, abs=0.12)
    assert fit.warnings[0].guard == "groups_of_taste" and "2 groups (" in fit.warnings[0].text
    assert fit.tried[1].gain > 20 and "gain +" in fit.reasons()[1]


@pytest.mark.parametrize(
    "noise",
    [{}, {"adversaries": 8}, {"careless": 10}, {"follows": 0.6}],
    ids=["care", "adversaries", "coins", "position"],
)
def test_one_taste_is_one_group_whatever_the_noise(noise):
    crowd = make([30], labels=20, votes=6, seed=2, eta=0.85, **noise)
    features = VoteFeatures(leaning={"slot": crowd.slot}) if "follows" in noise else None
    fit = fit_tastes(crowd.votes, 30, features=features)
    assert fit.groups == 1 and fit.membership.shape == (30, 1) and fit.warnings == []
    assert len(fit.tried) == 2 and fit.tried[1].gain < max(3.0, 2.5 * fit.tried[1].error)


def test_one_label_a_pair_tells_nothing_and_is_refused():
    fit = fit_tastes(Votes.single(torch.arange(40) % 8), 8)
    assert fit.groups == 1 and fit.tried == []
    assert fit.refused.startswith("no pair was labelled by two annotators")
    assert [warned.guard for warned in fit.warnings] == ["taste_cannot_be_told"] and fit.reasons() == [fit.refused]


def test_one_comparison_an_annotator_is_refused():
    votes = Votes(torch.arange(200).view(50, 4), torch.where(torch.rand(50, 4) < 0.5, 1.0, -1.0))
    fit = fit_tastes(votes, 200)
    assert fit.groups == 1 and "half of all have 1 or fewer" in fit.refused


def test_one_group_is_the_label_model():
    """With k = 1 memberships and the base say nothing: the fixed point is that of the one-coin member."""
    crowd = make([12], labels=30, votes=4, seed=3, eta=0.8)
    table, settings = vote_table(crowd.votes, 12), TasteSettings(iterations=400, tolerance=0.0)
    population = expected_population(table.names, [], settings.label_model)
    groups = fit_groups(table, torch.ones(12, 1, dtype=torch.float64), population, settings)
    member = fit_member(table, PairPrior.flat(table.num_pairs), population, share_start(table), settings.label_model)
    torch.testing.assert_close(groups.theta, member.theta, atol=0.01, rtol=0)
    torch.testing.assert_close(groups.w[:, 0], member.w, atol=0.01, rtol=0)


def test_truths_through_the_base_are_those_of_enumeration():
    evidence = torch.tensor([[1.0, -0.5, 2.0], [0.0, 3.0, -1.0]], dtype=torch.float64)
    differ = 0.2
    log_odds, differing = through_base(evidence, differ)
    for row in range(2):
        mass = {}
        for base in (1, -1):
            for z in torch.cartesian_prod(*[torch.tensor([1.0, -1.0])] * 3).double():
                channel = torch.where(z == base, 1 - differ, differ).prod()
                mass[base, tuple(z.tolist())] = (channel * torch.sigmoid(z * evidence[row]).prod()).item()
        total = sum(mass.values())
        for g in range(3):
            up = sum(m for (_, z), m in mass.items() if z[g] > 0) / total
            apart = sum(m for (base, z), m in mass.items() if z[g] != base) / total
            assert torch.sigmoid(log_odds[row, g]).item() == pytest.approx(up)
            assert differing[row, g].item() == pytest.approx(apart)


def test_memberships_weigh_the_evidence():
    """Votes of members of one group leave the other group's truths to the base alone."""
    crowd = make([6, 6], labels=20, votes=6, seed=4)
    table, settings = vote_table(crowd.votes, 12), TasteSettings(iterations=3, hold=3, part=3)
    population = expected_population(table.names, [], settings.label_model)
    fit = fit_groups(table, F.one_hot(crowd.group, 2).double(), population, settings)
    own = table.where(crowd.group[table.annotator] == 0)
    sums = pair_sums(own, fit.theta)
    others = pair_sums(table.where(crowd.group[table.annotator] == 1), fit.theta)
    evidence = torch.stack((sums.if_chosen - sums.if_rejected, others.if_chosen - others.if_rejected), -1)
    torch.testing.assert_close(fit.w, torch.sigmoid(through_base(evidence, settings.differ)[0]))


def test_turning_pairs_round_turns_the_truths_and_flat_votes_are_the_same():
    crowd = make([10, 8], labels=16, votes=9, seed=5)
    fit = fit_tastes(crowd.votes, 18, max_groups=2)
    flat = FlatVotes.of(crowd.votes)
    turned = fit_tastes(flat._replace(sign=-flat.sign), 18, max_groups=2)
    assert fit.groups == turned.groups == 2
    torch.testing.assert_close(turned.w, 1 - fit.w, atol=1e-4, rtol=0)
    torch.testing.assert_close(turned.membership, fit.membership, atol=1e-4, rtol=0)


def test_no_vote_at_all_is_an_error():
    with pytest.raises(DataError, match="no signed vote"):
        fit_tastes(Votes(torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 1)), 1)
