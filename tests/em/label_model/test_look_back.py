"""What is asked at the end of a run: estimates side by side on gold labels, and drift."""

import pytest
import torch

from nemo_rpo.em import EMSettings
from nemo_rpo.em.em_settings import LabelModelInTraining
from nemo_rpo.em.label_model.coded_votes import FlatVotes, vote_table
from nemo_rpo.em.label_model.of_run.look_back import ALONE, POLICY, judge_estimates
from nemo_rpo.em.label_model.reported import ANCHORS, MAJORITY

from ..run_worlds import crowd_of, draw, estimator

WORLD = draw(annotators=12, pairs=600, votes_a_pair=3, seed=4)
TRUTH = torch.where(WORLD.better, 1.0, -1.0).double()


def judged(votes, margin, as_evidence=True, gold=TRUTH):
    return judge_estimates(vote_table(FlatVotes.of(votes), 12), margin, gold, as_evidence, ())


def test_each_estimate_is_judged_by_what_it_knows():
    policy = 1.5 * TRUTH + torch.randn(600, generator=torch.Generator().manual_seed(0)).double()
    found = judged(WORLD.votes, policy)
    assert set(found) == {MAJORITY, ANCHORS, ALONE, POLICY}
    majority = ((WORLD.votes.sign.sum(-1) > 0) == WORLD.better).double().mean().item()
    assert found[MAJORITY].right == pytest.approx(majority, abs=1e-12) and found[MAJORITY].anchors == 600
    assert found[POLICY].right > found[ALONE].right >= majority - 0.02
    # A policy that says nothing is no other estimate.
    silent = judged(WORLD.votes, torch.zeros(600, dtype=torch.float64))
    assert silent[POLICY].right == silent[ALONE].right == found[ALONE].right


@pytest.mark.parametrize("as_evidence", [True, False])
def test_no_gold_label_is_evidence_where_it_judges(as_evidence):
    """Votes and margins that know nothing: half of the gold labels are found, though all are at hand."""
    generator = torch.Generator().manual_seed(1)
    gold = torch.where(torch.rand(600, generator=generator) < 0.5, 1.0, -1.0).double()
    sign = torch.where(torch.rand(600, 3, generator=generator) < 0.5, 1, -1)
    votes = WORLD.votes._replace(sign=sign)
    margin = torch.randn(600, generator=generator).double()
    for of in judged(votes, margin, as_evidence, gold).values():
        assert 0.4 < of.right < 0.6


def test_too_few_gold_labels_judge_nothing():
    few = TRUTH * (torch.arange(600) < 9)
    assert judged(WORLD.votes, torch.zeros(600, dtype=torch.float64), gold=few) == {}


@pytest.mark.parametrize("gold", [True, False])
def test_a_run_looks_back_on_its_first_margins(gold):
    """Gold labels judge whether or not they were evidence; times give a curve an annotator."""
    crowd = crowd_of(WORLD, TRUTH * (torch.arange(600) < 200))
    time = torch.rand(1800, generator=torch.Generator().manual_seed(3)).double()
    crowd = crowd._replace(columns=crowd.columns._replace(time=time))
    model = LabelModelInTraining(dependence=False, gold=gold)
    em = estimator(WORLD, crowd, EMSettings(label_model=model))
    em.buffer.load((1.5 * TRUTH).float())
    em.settle()
    found = em.look_back()
    assert found.judged[POLICY].anchors == 200 and found.judged[POLICY].right >= found.judged[MAJORITY].right
    assert found.drift.curve.shape[0] == len(found.annotators) == 12
    assert estimator(WORLD, None).look_back() is None
