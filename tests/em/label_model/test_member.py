"""The fit of one member: Newton's steps end where EM does, and votes that tell nothing of skills teach none."""

import pytest
import torch

from nemo_rpo.em.label_model import FlatVotes, VoteFeatures, fit_label_model
from nemo_rpo.em.label_model import member as module
from nemo_rpo.em.label_model.coded_votes import vote_table
from nemo_rpo.em.label_model.label_model_settings import LabelModelSettings
from nemo_rpo.em.label_model.member import PairPrior, expected_population, fit_member, share_start


def draw(annotators, pairs, votes_a_pair, seed=0):
    """Votes with a leaning to the response shown first: (votes, slot [M], truth [P] ±1)."""
    generator = torch.Generator().manual_seed(seed)
    annotator = torch.rand(pairs, annotators, generator=generator).argsort(-1)[:, :votes_a_pair].flatten()
    pair = torch.arange(pairs).repeat_interleave(votes_a_pair)
    truth = torch.where(torch.rand(pairs, generator=generator) < 0.5, 1.0, -1.0)
    slot = torch.where(torch.rand(len(pair), generator=generator) < 0.5, 1.0, -1.0)
    skill = (1.1 + 0.5 * torch.randn(annotators, generator=generator))[annotator]
    chosen = torch.rand(len(pair), generator=generator) < torch.sigmoid(skill * truth[pair] + 0.8 * slot)
    return FlatVotes(pair, annotator, torch.where(chosen, 1, -1), pairs), slot, truth


@pytest.mark.parametrize("votes_a_pair", [1, 4])
def test_newton_ends_where_em_does(votes_a_pair, monkeypatch):
    votes, slot, truth = draw(15, 600, votes_a_pair)
    table = vote_table(votes, 15, VoteFeatures(leaning={"slot": slot}))
    margin = (1.2 * truth + torch.randn(600, generator=torch.Generator().manual_seed(7))).double()
    prior = PairPrior(margin, torch.zeros(600).double())
    population = expected_population(table.names, ["slot"], LabelModelSettings())
    start, settings = share_start(table), LabelModelSettings(tolerance=1e-7, max_iterations=3000)
    quick = fit_member(table, prior, population, start, settings)
    monkeypatch.setattr(module, "_FALLS", 0)
    slow = fit_member(table, prior, population, start, settings)
    assert quick.converged and slow.converged and quick.iterations < slow.iterations
    torch.testing.assert_close(quick.theta, slow.theta, rtol=0, atol=1e-4)
    torch.testing.assert_close(quick.population.variance, slow.population.variance, rtol=1e-3, atol=0)
    assert quick.log_marginal == pytest.approx(slow.log_marginal, abs=1e-3)


def test_a_fit_from_where_fewer_features_ended_is_the_fit():
    votes, slot, _ = draw(15, 600, 4, seed=1)
    features = VoteFeatures(leaning={"slot": slot})
    table, prior = vote_table(votes, 15, features), PairPrior.flat(600)
    settings = LabelModelSettings(tolerance=1e-6)
    skill = table.select(())
    less = fit_member(skill, prior, expected_population(skill.names, [], settings), share_start(skill), settings)
    population = expected_population(table.names, ["slot"], settings)
    cold, warm = (fit_member(table, prior, population, start, settings) for start in (share_start(table), less))
    torch.testing.assert_close(warm.theta, cold.theta, rtol=0, atol=1e-3)
    assert warm.log_marginal == pytest.approx(cold.log_marginal, abs=1e-2)


def test_votes_alone_on_their_pairs_teach_leanings_and_no_skill():
    """Thousands of annotators with a label or two, nothing else known: skills stay as expected of anybody."""
    votes, slot, _ = draw(1, 6000, 1, seed=2)
    votes = votes._replace(annotator=torch.randint(3000, (6000,), generator=torch.Generator().manual_seed(3)))
    settings = LabelModelSettings(bootstrap=0)
    fit = fit_label_model(votes, 3000, VoteFeatures(leaning={"slot": slot}), settings=settings)
    assert fit.member.names == ("skill", "slot") and fit.member.converged
    torch.testing.assert_close(fit.skill, torch.full_like(fit.skill, settings.skill_mean), rtol=0, atol=1e-6)
    assert 0.6 < fit.member.population.mean[1] < 1.2
