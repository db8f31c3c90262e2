"""What the fit says of small crowds: which features, whom to believe, and when not to."""

import math

import pytest
import torch

from nemo_rpo.em import EMSettings, Votes
from nemo_rpo.em.fit.baselines import majority, one_coin
from nemo_rpo.em.label_model import LabelModelSettings, VoteFeatures, fit_label_model
from nemo_rpo.em.label_model.anchors import hold_out, judge
from nemo_rpo.em.label_model.choose import SHARE, slot_log_bayes_factor
from nemo_rpo.em.label_model.coded_votes import vote_table
from nemo_rpo.em.label_model.shared_errors import dependence
from nemo_rpo.em.label_model.shared_errors.dependence import Agreement, largest_block
from nemo_rpo.em.label_model.shared_errors.exchangeable import exchangeable_votes
from nemo_rpo.em.label_model.shared_errors.families import families_found, family_weights
from nemo_rpo.errors import DataError

from .crowds import accuracy, make, spread_of_skills


@pytest.fixture(scope="module")
def honest():
    return make(spread_of_skills(15, 0), pairs=300, votes_per_pair=6, seed=1)


@pytest.fixture(scope="module")
def honest_fit(honest):
    return fit_label_model(honest.votes, 15, VoteFeatures(leaning={"slot": honest.slot}))


def test_an_honest_crowd_is_one_coin_without_a_warning(honest, honest_fit):
    assert honest_fit.member.names == ("skill",) and honest_fit.leaning == {}
    assert honest_fit.choices[0].log_bayes_factor < 3 and honest_fit.reasons()[0].startswith("slot: left out")
    assert honest_fit.warnings == [] and honest_fit.recommended == "label model"
    today = one_coin(honest.votes, 15, EMSettings())
    assert accuracy(honest_fit.w, honest.better) >= accuracy(today.w, honest.better) - 0.01
    low, high = honest_fit.eta_interval.unbind(-1)
    assert ((low <= honest.eta) & (honest.eta <= high)).double().mean() >= 0.85


def test_followers_of_position_are_found():
    """40 % of the votes say what was shown first: a one-coin model turns that into reliability."""
    crowd = make(spread_of_skills(15, 0, 1.5), pairs=400, votes_per_pair=7, seed=2, follows=0.4)
    fit = fit_label_model(crowd.votes, 15, VoteFeatures(leaning={"slot": crowd.slot}))
    assert fit.order.random and "slot" in fit.leaning
    assert fit.choices[0].taken and fit.choices[0].log_bayes_factor > 30
    leaning, error = fit.leaning["slot"]
    assert (leaning > 2 * error).double().mean() > 0.8
    blind = accuracy(one_coin(crowd.votes, 15, EMSettings()).w, crowd.better)
    assert accuracy(fit.w, crowd.better) > blind + 0.08


def test_an_order_that_never_changed_identifies_no_mean_leaning():
    crowd = make(spread_of_skills(15, 0, 1.5), pairs=200, votes_per_pair=5, seed=2)
    fit = fit_label_model(crowd.votes, 15, VoteFeatures(leaning={"slot": torch.ones(200, 5)}))
    assert not fit.order.random and {choice.name for choice in fit.choices} == {"slot", SHARE}
    assert [warned.guard for warned in fit.warnings] == ["order_not_random"]


def test_a_mean_leaning_to_length_needs_anchors():
    crowd = make(spread_of_skills(10, 3, 1.5), pairs=100, votes_per_pair=5, seed=4)
    length = torch.randn(100, generator=torch.Generator().manual_seed(0))
    towards = torch.where(
        torch.rand(100, 5, generator=torch.Generator().manual_seed(1)) < 0.4, length.sign().unsqueeze(-1), 0
    )
    votes = Votes(crowd.votes.annotator, torch.where(towards != 0, towards.double(), crowd.votes.sign))
    features = VoteFeatures(leaning={"length": length})
    without = fit_label_model(votes, 10, features)
    gold = torch.where(crowd.better, 1.0, -1.0)
    gold[50:] = 0
    with_anchors = fit_label_model(votes, 10, features, gold=gold)
    assert without.member.population.mean[-1] == 0 if "length" in without.leaning else True
    assert with_anchors.member.population.mean[list(with_anchors.member.names).index("length")] > 0.2


def test_anchors_turn_a_crowd_that_is_worse_than_a_coin():
    eta = torch.linspace(0.15, 0.6, 12, dtype=torch.float64)
    crowd = make(eta, pairs=300, votes_per_pair=12, seed=5)
    gold = torch.where(crowd.better, 1.0, -1.0)
    gold[40:] = 0
    fit = fit_label_model(crowd.votes, 12, gold=gold)
    unseen = slice(40, None)
    ideal = torch.sigmoid(vote_table(crowd.votes, 12).per_pair(_evidence(crowd)))
    assert accuracy(fit.w[unseen], crowd.better[unseen]) >= 0.9 * accuracy(ideal[unseen], crowd.better[unseen])
    assert fit.verdict.judged["majority"].right < 0.5 and fit.recommended != "majority"
    assert fit.w[:40].tolist() == (gold[:40] > 0).double().tolist()


def test_without_anchors_such_a_crowd_is_not_believed():
    crowd = make(torch.linspace(0.15, 0.65, 12), pairs=300, votes_per_pair=12, seed=5)
    fit = fit_label_model(crowd.votes, 12)
    assert "upside_down" in [warned.guard for warned in fit.warnings]
    assert torch.maximum(fit.w, 1 - fit.w).max() < 0.97


@pytest.mark.parametrize("annotators", [1, 20])
def test_where_nobody_votes_on_the_pairs_of_others_that_is_said_and_nobody_is_doubted(annotators):
    crowd = make(torch.full((annotators,), 0.8), pairs=200, votes_per_pair=1, seed=6)
    fit = fit_label_model(crowd.votes, annotators)
    assert [warned.guard for warned in fit.warnings] == ["nobody_heard"]
    assert fit.eta_interval[:, 0].max() < 0.1 and fit.eta_interval[:, 1].min() > 0.9


def _evidence(crowd):
    table = vote_table(crowd.votes, len(crowd.eta))
    return table.sign() * torch.logit(crowd.eta)[table.annotator]


def test_shared_errors_are_warned_of_and_the_majority_reported():
    """Six of twelve judges share a cause of error: the EM takes their agreement for truth."""
    crowd = make(spread_of_skills(12, 7, 0.5, 0.3), pairs=400, votes_per_pair=12, seed=4, family=6, correlation=0.8)
    fit = fit_label_model(crowd.votes, 12)
    assert fit.recommended == "majority" and fit.warnings[0].guard == "shared_errors"
    assert "the majority is reported instead" in fit.warnings[0].text
    counted = accuracy(majority(crowd.votes, 12).w, crowd.better)
    assert accuracy(fit.w, crowd.better) >= counted - 1e-9
    low, high = fit.eta_interval.unbind(-1)
    assert ((low <= crowd.eta) & (crowd.eta <= high)).double().mean() >= 0.9
    assert set(range(6)) == set(fit.families[0])
    assert "families: [0, 1, 2, 3, 4, 5]" in fit.warnings[0].text


@pytest.mark.parametrize("dense", [256, 4])
def test_one_eigenvalue_gathers_a_group(monkeypatch, dense):
    """Four annotators of whom every two agree by two standard errors too much, among eight others: 3 · 2."""
    monkeypatch.setattr(dependence, "_DENSE", dense)
    first, second = torch.triu_indices(12, 12, offset=1)
    shared = torch.full((66,), 25.0, dtype=torch.float64)
    correlation = torch.where(second < 4, 0.4, 0.0).double()
    found = Agreement(first, second, shared, shared, shared, shared, correlation)
    assert largest_block(found) == pytest.approx(6.0, abs=1e-4)


def test_a_group_that_agrees_a_little_is_found_by_its_eigenvalue():
    """Nine of ten judges, five of whom vote on a pair: neither the spread nor the two that agree most are far out."""
    crowd = make(spread_of_skills(10, 3, 0.8, 0.5), pairs=400, votes_per_pair=5, seed=0, family=9, correlation=0.3)
    found = fit_label_model(crowd.votes, 10).dependence
    apart, apart_by, limit = found.observed, found.error, LabelModelSettings().dependence_errors
    assert found.apart and apart.block > found.expected.block + limit * apart_by.block
    assert apart.spread < found.expected.spread + limit * apart_by.spread
    assert apart.largest < found.expected.largest + limit * apart_by.largest


def test_a_declared_family_counts_for_fewer_votes():
    crowd = make([0.6] * 5 + [0.8] * 5, pairs=400, votes_per_pair=10, seed=3, family=5, correlation=0.8)
    families = torch.tensor([0] * 5 + [-1] * 5)
    fit = fit_label_model(crowd.votes, 10, families=families)
    blind = fit_label_model(crowd.votes, 10)
    assert fit.family_correlation.item() > 0.5
    assert (
        accuracy(fit.estimates["label model"], crowd.better)
        > accuracy(blind.estimates["label model"], crowd.better) + 0.1
    )


def test_weights_of_a_family():
    votes = Votes(torch.tensor([[0, 1, 2], [0, 2, 2]]), torch.tensor([[1, 1, 1], [1, 1, 0]]))
    weight = family_weights(vote_table(votes, 3), torch.tensor([0, 0, -1]), torch.tensor([0.5], dtype=torch.float64))
    assert weight.tolist() == pytest.approx([1 / 1.5, 1 / 1.5, 1.0, 1.0, 1.0])


def test_independent_annotators_are_no_family(honest):
    table = vote_table(honest.votes, 15)
    assert families_found(table, exchangeable_votes(table).w) == []


def test_the_exchangeable_vote_orders_pairs_as_the_majority_does(honest):
    table = vote_table(honest.votes, 15)
    fit, share = exchangeable_votes(table), honest.votes.share()
    assert ((fit.w > 0.5) == (share > 0.5)).all() and ((fit.w == 0.5) == (share == 0.5)).all()
    low, high = fit.accuracy[1:]
    assert low - 0.03 <= accuracy(fit.w, honest.better) <= high + 0.03


def test_turning_pairs_round_turns_the_answers(honest, honest_fit):
    """chosen and rejected are names: signs and slots turned, posteriors are turned and reliabilities are the same."""
    turned = torch.arange(300) % 2 == 0
    side = torch.where(turned, -1.0, 1.0).unsqueeze(-1)
    votes = Votes(honest.votes.annotator, honest.votes.sign * side)
    fit = fit_label_model(votes, 15, VoteFeatures(leaning={"slot": honest.slot * side}))
    torch.testing.assert_close(fit.member.w, torch.where(turned, 1 - honest_fit.member.w, honest_fit.member.w))
    torch.testing.assert_close(fit.skill, honest_fit.skill)


def test_two_orders_of_one_judge_are_one_vote():
    votes = Votes(torch.tensor([[0, 0, 1], [0, 0, 1]]), torch.tensor([[1, 1, -1], [1, -1, -1]]))
    table = vote_table(votes, 2, VoteFeatures(leaning={"slot": torch.tensor([[1.0, -1.0, 1.0]]).expand(2, 3)}))
    assert table.pair.tolist() == [0, 0, 1] and table.annotator.tolist() == [0, 1, 1]
    assert table.says_chosen.tolist() == [True, False, False] and table.design[:, 1].tolist() == [0.0, 1.0, 1.0]


def test_closed_form_of_the_slot():
    """Against numerical integration of the uniform prior."""
    q = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    integral = (70 * q.log() + 30 * (1 - q).log()).exp().mean().log().item()
    assert slot_log_bayes_factor(70, 100) == pytest.approx(integral + 100 * math.log(2), abs=1e-6)


def test_anchors_are_held_out_once_and_a_favourite_yields_only_to_evidence():
    gold = torch.cat((torch.ones(20), -torch.ones(20), torch.zeros(5))).double()
    assert torch.stack(hold_out(gold, 5)).sum(0).tolist() == [1] * 40 + [0] * 5
    right = torch.where(gold >= 0, 0.9, 0.1).double()
    nearly, other = right.clone(), right.clone()
    nearly[:3], other[3:5] = 0.2, 0.2
    verdict = judge(gold, lambda _: {"model": nearly, "vote": other}, 5, "model", doubted=False)
    assert verdict.best == "model" and verdict.parted == ""
    assert judge(gold, lambda _: {"model": nearly, "vote": other}, 5, "model", doubted=True).best == "vote"
    worse = torch.full_like(right, 0.4)
    verdict = judge(gold, lambda _: {"model": worse, "vote": right}, 5, "model", doubted=False)
    assert verdict.best == "vote" and "use vote" in verdict.parted


def test_columns_that_do_not_fit_are_refused(honest):
    with pytest.raises(DataError, match=r"gold has shape \[3\]; expected \[300\]"):
        fit_label_model(honest.votes, 15, gold=torch.zeros(3))
    with pytest.raises(DataError, match="the feature 'slot' has shape"):
        fit_label_model(honest.votes, 15, VoteFeatures(leaning={"slot": torch.zeros(300, 2)}))
    with pytest.raises(DataError, match="no signed vote"):
        fit_label_model(Votes(torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 1)), 1)


def _longer_is_better(crowd, generator):
    """A difference of lengths whose sign is that of the truth on three pairs in four."""
    towards = torch.where(crowd.better, 1.0, -1.0) * torch.where(torch.rand(500, generator=generator) < 0.75, 1.0, -1.0)
    return towards * (0.5 + torch.rand(500, generator=generator))


def test_a_truth_that_goes_with_length_is_no_leaning():
    """Those who know the truth vote for the longer response, inverted ones for the shorter: nobody leans to length."""
    eta = torch.where(torch.arange(300) % 5 < 2, 0.15, 0.9).double()
    crowd = make(eta, pairs=500, votes_per_pair=5, seed=6)
    length = _longer_is_better(crowd, torch.Generator().manual_seed(2))
    alone = LabelModelSettings(bootstrap=0)
    fit = fit_label_model(crowd.votes, 300, VoteFeatures(leaning={"length": length}), settings=alone)
    assert fit.leaning == {} and fit.choices[0].log_bayes_factor < 0
    torch.testing.assert_close(fit.w, fit_label_model(crowd.votes, 300, settings=alone).w)


def test_followers_of_length_are_found_where_the_truth_goes_with_it():
    crowd = make(torch.full((20,), 0.85).double(), pairs=500, votes_per_pair=6, seed=7)
    generator = torch.Generator().manual_seed(3)
    length = _longer_is_better(crowd, generator)
    follows = (crowd.votes.annotator < 7) & (torch.rand(500, 6, generator=generator) < 0.8)
    sign = torch.where(follows, length.sign().unsqueeze(-1), crowd.votes.sign.float())
    votes = Votes(crowd.votes.annotator, sign)
    alone = LabelModelSettings(bootstrap=0)
    fit = fit_label_model(votes, 20, VoteFeatures(leaning={"length": length}), settings=alone)
    leaning = fit.leaning["length"][0]
    assert leaning[:7].min() > leaning[7:].max()
    assert accuracy(fit.w, crowd.better) >= accuracy(fit_label_model(votes, 20, settings=alone).w, crowd.better) + 0.005
    # That longer ones are better is not what a pair is judged by.
    assert fit.member.prior.shares["length"] > 0.3
    beside = (
        torch.logit(fit.member.w, eps=1e-12) - fit.member.prior.shares["length"] * fit.member.prior.columns["length"]
    )
    torch.testing.assert_close(fit.estimates["label model"], torch.sigmoid(beside))
