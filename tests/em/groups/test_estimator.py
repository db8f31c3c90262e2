"""Groups of taste: found where they are, one truth where they are not, and the EM's arithmetic against plain loops."""

from __future__ import annotations

import math

import pytest
import torch

from nemo_rpo.em import AnnotatorReliability, EMSettings, MarginBuffer, PairRecord, PairStep, RecordedReliability, Votes
from nemo_rpo.em.groups import TasteReliability
from nemo_rpo.em.groups.start import check_identifiable, random_start
from nemo_rpo.errors import ConfigError
from nemo_rpo.losses import PairLogprobs, build_loss

from .worlds import crowd, estimator, train

VOTES = Votes(torch.tensor([[0, 1], [2, 0], [1, 3]]), torch.tensor([[1.0, -1.0], [1.0, 0.0], [-1.0, 1.0]]))
DELTA = torch.tensor([[0.5, -1.0], [2.0, 0.3], [-0.7, 0.9]])
PAIRS, ALL = torch.arange(3), torch.ones(3, dtype=torch.bool)


def small(warmup: int = 0) -> TasteReliability:
    """Three annotators; index 3 stands for whoever is unknown."""
    start = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.3, 0.0]], dtype=torch.float64)
    settings = EMSettings(estimator="ema", warmup_steps=warmup)
    em = TasteReliability(settings, start, torch.tensor([40, 40, 40]), [MarginBuffer(3) for _ in "ab"])
    em.replace(torch.tensor([0.9, 0.7, 0.6], dtype=torch.float64))
    return em


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_two_tastes_are_found_and_each_has_a_better_reward_than_one_for_all():
    data = crowd()
    em, plain = estimator(data), estimator(data, groups=1)
    heads, head = train(data, em), train(data, plain)
    found = em.weight.argmax(-1)
    found = found if (found == data.taste).float().mean() > 0.5 else 1 - found
    assert (found == data.taste).float().mean() >= 0.95
    right = ((data.fresh @ heads.t() > 0).unsqueeze(-1) == data.better.unsqueeze(1)).float().mean(0)  # [head, taste]
    for_all = ((data.fresh @ head.t() > 0) == data.better).float().mean(0)
    assert (right.max(0).values > for_all).all() and (right.max(0).values - for_all).mean() > 0.1, (right, for_all)
    assert torch.allclose(em.share.sort().values, torch.tensor([0.4, 0.6], dtype=torch.float64), atol=0.06)


def test_one_taste_leaves_one_group_nearly_empty():
    data = crowd(second=0.0, votes=1)
    em = estimator(data)
    train(data, em)
    assert em.share.min() < 0.1


def test_one_group_is_the_running_estimator():
    """The same posteriors and, where a pair has one vote, the same η after a step."""
    votes = Votes(torch.tensor([[0], [2], [1]]), torch.tensor([[1.0], [-1.0], [1.0]]))
    plain = AnnotatorReliability(3, EMSettings(estimator="ema"))
    em = TasteReliability(EMSettings(estimator="ema"), torch.zeros(3, 1), torch.ones(3), [MarginBuffer(3)])
    delta = DELTA[:, 0]
    w = plain.posterior(delta, votes)
    assert torch.equal(em.group_posterior(delta.unsqueeze(-1), votes).squeeze(-1), w)
    plain.accumulate(w, votes, ALL), em.accumulate_groups(PAIRS, delta.unsqueeze(-1), votes, ALL)
    plain.commit(), em.commit()
    torch.testing.assert_close(em.eta, plain.eta, atol=1e-7, rtol=0)
    assert torch.equal(em.label_counts, plain.label_counts)


def test_the_e_step_is_the_equation():
    em = small()
    w, weight = em.group_posterior(DELTA, VOTES), em.pair_weight(VOTES)
    rows = [*em.weight.tolist(), em.share.tolist()]
    eta = [*em.eta.tolist(), em.settings.eta_init]
    for i in range(3):
        cast = [(int(k), float(s)) for k, s in zip(VOTES.annotator[i], VOTES.sign[i], strict=True) if s]
        for g in range(2):
            evidence = sum(rows[k][g] * s * math.log(eta[k] / (1 - eta[k])) for k, s in cast)
            assert w[i, g].item() == pytest.approx(sigmoid(DELTA[i, g].item() + evidence), abs=1e-6)
            assert weight[i, g].item() == pytest.approx(sum(rows[k][g] for k, _ in cast) / len(cast), abs=1e-6)


def test_the_m_step_of_the_weights_is_the_equation():
    em = small()
    before, logits, kept = em.weight.clone(), em.log_odds.clone(), 1 - 1 / 40
    eta = em.eta.tolist()
    votes = VOTES._replace(annotator=VOTES.annotator.clamp(max=2))
    em.accumulate_groups(PAIRS, DELTA, votes, ALL)
    em.commit()
    told, labels = torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3)
    for i in range(3):
        cast = [(int(k), float(s)) for k, s in zip(votes.annotator[i], votes.sign[i], strict=True) if s]
        for v, (k, s) in enumerate(cast):
            labels[k] += 1
            for g in range(2):
                others = sum(
                    before[j, g].item() * t * math.log(eta[j] / (1 - eta[j])) for u, (j, t) in enumerate(cast) if u != v
                )
                p = sigmoid(s * (DELTA[i, g].item() + others))
                told[k, g] += math.log(eta[k] * p + (1 - eta[k]) * (1 - p))
    share = (before.sum(0) + 1) / 5
    expected = (logits * (kept**labels).unsqueeze(-1) + told + share.log()).softmax(-1)
    torch.testing.assert_close(em.weight, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(em.share, share)


def test_what_is_not_valid_or_not_finite_leaves_no_trace():
    em, without = small(), small()
    broken = DELTA.clone()
    broken[2] = torch.nan
    broken[1, 0] = torch.inf
    em.accumulate_groups(PAIRS, broken, VOTES._replace(annotator=VOTES.annotator.clamp(max=2)), ALL)
    first = Votes(*(column[:1] for column in VOTES[:2]))
    without.accumulate_groups(PAIRS[:1], DELTA[:1], first, ALL[:1])
    em.commit(), without.commit()
    assert torch.equal(em.weight, without.weight) and torch.equal(em.eta, without.eta)
    assert em.margins().isnan()[1:].all() and torch.equal(em.margins()[0], DELTA[0])


def test_a_rolled_back_step_and_a_warm_up_move_nothing():
    em, warm = small(), small(warmup=1)
    votes = VOTES._replace(annotator=VOTES.annotator.clamp(max=2))
    weight = em.weight.clone()
    em.accumulate_groups(PAIRS, DELTA, votes, ALL)
    em.rollback()
    warm.accumulate_groups(PAIRS, DELTA, votes, ALL)
    warm.commit()
    for of in (em, warm):
        assert torch.equal(of.weight, weight) and not of.pending.any()
    assert torch.equal(small(warmup=1).group_posterior(DELTA, votes), small().group_posterior(0 * DELTA, votes))


def test_micro_batches_leave_no_trace_and_the_state_goes_on_bitwise():
    data = crowd(annotators=6, labels=24)
    whole, parts = estimator(data), estimator(data)
    delta = torch.randn(len(data.x), 2, generator=torch.Generator().manual_seed(1))
    every = torch.arange(len(data.x))
    whole.accumulate_groups(every, delta, data.votes, torch.ones(len(every), dtype=torch.bool))
    for pairs in every.flip(0).split(7):
        some = data.votes.of(pairs, torch.device("cpu"))
        parts.accumulate_groups(pairs, delta[pairs], some, torch.ones(len(pairs), dtype=torch.bool))
    whole.commit(), parts.commit()
    again = estimator(data, seed=9)
    again.load_state_dict(parts.state_dict())
    for em in (parts, again):
        assert torch.equal(em.weight, whole.weight) and torch.equal(em.eta, whole.eta)
        assert torch.equal(em.margins(), delta)


def test_the_pair_step_weighs_groups_and_teaches_the_estimator():
    em, loss = RecordedReliability(small(), PairRecord(3)), build_loss("pal")
    votes = VOTES._replace(annotator=VOTES.annotator.clamp(max=2))
    scores = DELTA.clone().requires_grad_()
    x = PairLogprobs(None, None, response_columns={"scores": (scores, torch.zeros(3, 2))},
                     pair_columns={"group_weight": em.pair_weight(votes)})  # fmt: skip
    step = PairStep(loss, "induced", 1.0, 0.0, False)
    losses = step(x, votes, ALL, em, learn_from=PAIRS)
    w, weight = em.group_posterior(DELTA, votes), em.pair_weight(votes)
    torch.testing.assert_close(losses.w, (weight * w).sum(-1))
    torch.testing.assert_close(losses.delta, (weight * DELTA).sum(-1))
    (gradient,) = torch.autograd.grad(losses.objective.sum(), scores)
    torch.testing.assert_close(gradient, weight * (DELTA.sigmoid() - w))  # Fisher's identity, group by group
    em.exchange(lambda rows: rows)
    em.commit()
    assert torch.equal(em.margins(), DELTA) and em.label_counts.sum() == 5
    torch.testing.assert_close(em.seen()[:, 0], losses.delta)


def test_where_nobody_compares_twice_groups_are_refused():
    ones = torch.ones(100)
    with pytest.raises(ConfigError, match=r"groups=2 cannot be told apart: 100% of the labels come from annotators"):
        check_identifiable(ones, 2)
    with pytest.raises(ConfigError, match=r"only 3 annotators gave two labels or more, and 2 groups need 4"):
        check_identifiable(torch.tensor([50, 50, 50, 1]), 2)
    check_identifiable(torch.cat((ones, torch.full((12,), 10))), 3)


def test_the_start_is_the_same_everywhere_and_not_even():
    before = torch.get_rng_state()
    assert torch.equal(random_start(5, 3, seed=4), random_start(5, 3, seed=4))
    assert torch.equal(torch.get_rng_state(), before)
    assert random_start(40, 2, seed=4).softmax(-1).max() > 0.8
