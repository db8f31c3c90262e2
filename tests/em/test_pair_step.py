"""The one pair step: its formula, the pairs that stand apart from it, and what it teaches an estimator."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nemo_rpo.em import (
    AnnotatorReliability,
    EMSettings,
    PairStep,
    RecordedReliability,
    Votes,
    build_estimator,
    robust_loss,
)
from nemo_rpo.em.record import PairRecord
from nemo_rpo.losses import PairLogprobs, RankingLogprobs, build_loss

PAIRS = 5
VALID = torch.tensor([True, True, False, True, True])
VOTES = Votes(
    torch.tensor([[0, 1], [1, 0], [0, 0], [2, 0], [1, 2]]),
    torch.tensor([[1.0, -1.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 1.0]]),
)
ETA = torch.tensor([0.9, 0.7, 0.4], dtype=torch.float64)


def pairs(seed: int = 0, **columns: torch.Tensor) -> PairLogprobs:
    generator = torch.Generator().manual_seed(seed)
    policy = [(-10 * torch.rand(PAIRS, generator=generator)).requires_grad_() for _ in range(2)]
    reference = [-10 * torch.rand(PAIRS, generator=generator) for _ in range(2)]
    lengths = [torch.randint(1, 9, (PAIRS,), generator=generator) for _ in range(2)]
    return PairLogprobs(*policy, *reference, *lengths, pair_columns=columns)


def step_of(name: str = "dpo", sft_weight: float = 0.0, average_sft: bool = False, **options) -> PairStep:
    return PairStep(build_loss(name, **options), "induced", 0.5, sft_weight, average_sft)


def estimator(kind: str = "ema") -> AnnotatorReliability:
    em = build_estimator(EMSettings(estimator=kind), 3, 20, lambda block: Votes.single(torch.zeros(20).long()))
    em.replace(ETA)
    return em


@pytest.mark.parametrize("average", [False, True])
def test_the_formula(average):
    x, em = pairs(), estimator()
    found = step_of(sft_weight=0.3, average_sft=average, beta=0.2)(x, VOTES, VALID, em)
    chosen, rejected = x.log_ratios()
    delta = (0.2 * (chosen - rejected)).detach()
    evidence = (VOTES.sign * ETA.logit().float()[VOTES.annotator]).sum(-1)
    w = torch.sigmoid(delta + evidence)
    preference = -w * F.logsigmoid(0.2 * (chosen - rejected)) - (1 - w) * F.logsigmoid(-0.2 * (chosen - rejected))
    of_chosen, of_rejected = x.policy()
    if average:
        of_chosen, of_rejected = of_chosen / x.chosen_length, of_rejected / x.rejected_length
    sft = -(w * of_chosen + (1 - w) * of_rejected)
    for name, expected in {"delta": delta, "w": w, "preference": preference, "sft": sft}.items():
        torch.testing.assert_close(getattr(found, name), expected)
    torch.testing.assert_close(found.loss, 0.5 * preference + 0.3 * sft)
    torch.testing.assert_close(found.objective, torch.where(VALID, found.loss, 0.0))
    assert not found.w.requires_grad and not found.delta.requires_grad


def test_without_an_estimator_every_label_is_taken_at_its_word():
    x = pairs()
    found = replace(step_of("ipo"), preference_weight=1.0)(x, VOTES, VALID, em=None)
    assert found.w.tolist() == [0.5, 1.0, 1.0, 0.0, 1.0]
    terms = build_loss("ipo").terms(x)
    torch.testing.assert_close(found.preference, found.w * terms.chosen + (1 - found.w) * terms.rejected)


def test_a_tie_has_no_label_to_doubt():
    """Under the induced objective w = σ(Δ) would be fitted to itself, and its gradient be 0."""
    tie = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])
    nobody = Votes(VOTES.annotator, torch.where(tie.bool()[:, None], 0.0, VOTES.sign))
    x, em = pairs(tie=tie), estimator()
    found = step_of("todo", beta=0.5)(x, nobody, VALID, em)
    terms = build_loss("todo", beta=0.5).terms(x)
    weighted, induced = (robust_loss(terms, found.w, objective) for objective in ("weighted", "induced"))
    assert torch.equal(found.preference, torch.where(tie.bool(), weighted, induced))
    assert weighted[1] != induced[1]
    (gradient,) = torch.autograd.grad(found.preference[1], x.policy_chosen)
    assert gradient[1].abs() > 1e-3


def test_only_without_an_estimator_a_ranking_is_taken_as_a_whole():
    generator = torch.Generator().manual_seed(1)
    ranking = RankingLogprobs(*(-10 * torch.rand(2, 3, generator=generator) for _ in range(2)))
    x, weight = ranking.split()
    votes = Votes(torch.zeros(6, 1).long(), torch.ones(6, 1), weight)
    valid, size = torch.ones(6, dtype=torch.bool), torch.tensor([3, 3])
    step = replace(step_of("plackett_luce"), preference_weight=1.0)
    whole = step(x, votes, valid, em=None, ranking_size=size)
    each = build_loss("plackett_luce").ranking(ranking)
    torch.testing.assert_close(whole.objective.view(2, 3).sum(-1), each)
    torch.testing.assert_close(whole.counts_for.view(2, 3).sum(-1), torch.ones(2))
    doubted = step(x, votes, valid, estimator(), ranking_size=size)
    assert not torch.allclose(doubted.loss, whole.loss)
    assert torch.equal(doubted.loss, step(x, votes, valid, estimator()).loss)


def test_a_pair_that_is_not_valid_may_hold_anything():
    x = pairs()
    clean = step_of(sft_weight=0.3)(x, VOTES, VALID, estimator()).objective
    policy = x.policy_chosen.detach().clone()
    policy[2] = math.nan
    policy.requires_grad_()
    spoilt, em = replace(x, policy_chosen=policy), estimator()
    found = step_of(sft_weight=0.3)(spoilt, VOTES, VALID, em, torch.arange(PAIRS))
    assert torch.equal(found.objective, clean)
    found.objective[VALID].sum().backward()
    assert policy.grad[VALID].isfinite().all()
    assert em.pending.isfinite().all() and em.pending[1].tolist() == [1, 3, 2]


def test_a_term_of_weight_0_is_no_part_of_the_loss():
    x = replace(pairs(), policy_chosen=torch.full((PAIRS,), -math.inf))
    found = step_of("hinge")(x, VOTES, VALID, em=None)
    assert found.sft.isinf().any()
    assert not found.loss.isnan().any()


def test_a_loss_that_is_no_mean_is_summed_by_its_surrogate():
    x, step = pairs(), PairStep(build_loss("dr_dpo", beta_prime=0.7), "induced", 1.0, 0.0, False)
    found, reduction = step(x, VOTES, VALID, em=None), step.loss.reduction
    assert torch.equal(found.surrogate, reduction.surrogate(found.loss))
    assert torch.equal(found.statistic, reduction.statistic(found.loss))
    assert torch.equal(found.objective, torch.where(VALID, reduction.surrogate(found.loss), 0.0))


@pytest.mark.parametrize("kind", ["ema", "buffer"])
def test_only_training_teaches(kind):
    x, em = pairs(), estimator(kind)
    before = em.state_dict()
    quiet = step_of()(x, VOTES, VALID, em)
    em.exchange(lambda rows: rows)
    em.commit()
    after = em.state_dict()
    for name in before.keys() - {"step"}:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0, equal_nan=True)

    pair = torch.tensor([3, 0, 9, 17, 5])
    taught = step_of()(x, VOTES, VALID, em, pair)
    assert torch.equal(quiet.loss, taught.loss)
    em.exchange(lambda rows: rows)
    em.commit()
    if kind == "ema":
        assert em.label_counts.tolist() == [1, 3, 2]
        return
    expected = torch.full((20,), math.nan)
    expected[pair[VALID]] = taught.delta[VALID]
    torch.testing.assert_close(em.buffer.margins, expected, equal_nan=True)


def test_the_record_sees_posteriors_and_margins_of_the_same_pairs():
    recorded = RecordedReliability(estimator(), PairRecord(20))
    pair = torch.tensor([3, 0, 9, 17, 5])
    found = step_of()(pairs(), VOTES, VALID, recorded, pair)
    recorded.exchange(lambda rows: rows)
    recorded.commit()
    first_delta, first_w, _ = recorded.seen().unbind(-1)
    torch.testing.assert_close(first_delta[pair[VALID]], found.delta[VALID])
    torch.testing.assert_close(first_w[pair[VALID]], found.w[VALID])
    assert first_delta.isfinite().sum() == VALID.sum()
