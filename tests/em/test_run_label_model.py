"""The label model beside the margin buffer: what a refit makes of it, on one rank and on two, and what a step reads."""

import pytest
import torch

from nemo_rpo.em import BufferSettings, EMSettings, Votes
from nemo_rpo.em.em_settings import LabelModelInTraining
from nemo_rpo.em.label_model import VoteFeatures, fit_label_model
from nemo_rpo.em.label_model.of_run.run_label_model import RunLabelModel
from nemo_rpo.errors import ConfigError

from .ranks import Ranks
from .run_worlds import crowd_of, draw, estimator, learn

FOLLOWED = draw(annotators=16, pairs=900, votes_a_pair=5, followers=8, seed=1)
PLAIN = draw(annotators=16, pairs=600, votes_a_pair=1, seed=2)
NO_TEMPERATURE = BufferSettings(fit_temperature=False)


def margins(world, scale=1.0, seed=0):
    """Margins of a policy that has learnt something: right on average, and noisy."""
    noise = torch.randn(len(world.x), generator=torch.Generator().manual_seed(seed))
    return scale * (0.5 * world.x @ world.truth + noise)


def settings(**of_model):
    return EMSettings(buffer=NO_TEMPERATURE, label_model=LabelModelInTraining(dependence=False, **of_model))


@pytest.fixture(scope="module")
def refitted():
    """An estimator that has seen all pairs, its world's margins, and its posteriors of all training pairs."""
    em, delta = estimator(FOLLOWED, crowd_of(FOLLOWED), settings()), margins(FOLLOWED, 0.3)
    em.buffer.load(delta)
    em.refit()
    return em, delta, em.posterior(delta, FOLLOWED.votes, torch.arange(len(delta)))


@pytest.mark.parametrize("model", [{"features": "none"}, {"enabled": False}, {}])
def test_with_nothing_to_say_a_run_is_what_it_was(model):
    """To the bit: nobody follows the order shown, so that even where it is known it stays out."""
    without = estimator(PLAIN, None)
    beside = estimator(PLAIN, crowd_of(PLAIN), EMSettings(label_model=LabelModelInTraining(**model)))
    first, second = (learn(PLAIN, em, steps=33, rate=3.0) for em in (without, beside))
    assert beside.pair_evidence is None and (beside.label_model is None) == bool(model)
    assert torch.equal(first, second) and torch.equal(without.eta, beside.eta)
    assert without.estimate.sweep is not None and not torch.equal(without.eta, torch.full_like(without.eta, 0.9))


def test_posteriors_are_those_of_the_label_model_with_the_margins_as_prior(refitted):
    em, delta, w = refitted
    crowd = crowd_of(FOLLOWED)
    features = {"slot": crowd.columns.shown_first.view_as(FOLLOWED.votes.sign).float()}
    expected = fit_label_model(FOLLOWED.votes, 16, VoteFeatures(leaning=features), margin=delta.double())
    assert em.label_model.now.names == expected.member.names == ("skill", "slot")
    assert any(line.startswith("slot: taken") for line in em.label_model.reasons)
    torch.testing.assert_close(w.double(), expected.member.w, rtol=0, atol=2e-3)
    torch.testing.assert_close(em.eta, expected.eta, rtol=0, atol=2e-3)
    coefficient, error = em.coefficients["slot"]
    torch.testing.assert_close(coefficient, expected.leaning["slot"][0], rtol=0, atol=1e-2)
    torch.testing.assert_close(
        error, expected.leaning["slot"][1], rtol=0.15, atol=0
    )  # there of all annotators together


def test_who_follows_the_order_shown_is_found_and_not_believed(refitted):
    em, delta, w = refitted
    one_coin = estimator(FOLLOWED, None, settings())
    one_coin.buffer.load(delta)
    one_coin.refit()
    found = (w > 0.5) == FOLLOWED.better
    before = (one_coin.posterior(delta, FOLLOWED.votes) > 0.5) == FOLLOWED.better
    majority = (FOLLOWED.votes.sign.sum(-1) > 0) == FOLLOWED.better
    assert found.float().mean() > before.float().mean() + 0.01 and found.float().mean() > majority.float().mean() + 0.1
    error, _ = em.findings()
    covered = ((em.eta - FOLLOWED.eta).abs() < 1.96 * (error**2 + 0.25 / 280).sqrt()).float().mean()
    assert covered > 0.8
    leaning, of_leaning = em.coefficients["slot"]
    assert (leaning[:8] > 1).all() and (leaning[8:].abs() < 4 * of_leaning[8:]).all()


def test_what_has_no_place_in_the_data_is_read_from_its_votes(refitted):
    em, delta, w = refitted
    votes = Votes(FOLLOWED.votes.annotator[:4], FOLLOWED.votes.sign[:4])
    of_votes = em.posterior(delta[:4], votes)
    found = em.posterior(delta[:4], votes, torch.tensor([0, -1, 2, -1]))
    assert torch.equal(found, torch.where(torch.tensor([True, False, True, False]), w[:4], of_votes))


def test_two_ranks_find_what_one_finds(refitted):
    alone, delta, _ = refitted
    ranks = Ranks(2)

    def work(rank):
        em = estimator(FOLLOWED, crowd_of(FOLLOWED), settings(), rank, 2, ranks.collectives(rank))
        em.buffer.load(delta)
        em.refit()
        return em, em.findings()[0]

    (first, error), (second, _) = ranks.run(work)
    assert torch.equal(first.pair_evidence, second.pair_evidence) and torch.equal(first.eta, second.eta)
    torch.testing.assert_close(first.pair_evidence, alone.pair_evidence, rtol=0, atol=1e-5)
    torch.testing.assert_close(first.eta, alone.eta, rtol=0, atol=1e-7)
    torch.testing.assert_close(error, alone.findings()[0], rtol=1e-5, atol=0)
    assert torch.equal(first.label_counts, alone.label_counts)


def test_resume_is_exact():
    """In the middle of a run whose model is in force, and from a checkpoint that knows of no label model."""
    unbroken, restored, older = (estimator(FOLLOWED, crowd_of(FOLLOWED), settings()) for _ in range(3))
    learn(FOLLOWED, unbroken, steps=9)
    state = unbroken.state_dict()
    assert unbroken.pair_evidence is not None
    restored.load_state_dict(state)
    older.load_state_dict({name: of for name, of in state.items() if not name.startswith("label_model.")})
    assert older.pair_evidence is None and torch.equal(older.eta, unbroken.eta)
    for em in (unbroken, restored, older):
        learn(FOLLOWED, em, steps=20)
    assert torch.equal(restored.pair_evidence, unbroken.pair_evidence) and torch.equal(restored.eta, unbroken.eta)
    mine, theirs = unbroken.state_dict(), restored.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine if name.startswith("label_model."))
    torch.testing.assert_close(older.pair_evidence, unbroken.pair_evidence, rtol=0, atol=0.2)


def test_a_policy_learns_the_truth_and_not_the_order_shown():
    """One vote a pair; the policy can see the order shown too, and learns it from those who follow it."""
    world = draw(annotators=12, pairs=1500, votes_a_pair=1, followers=6, share=0.9, seed=5)
    world = world._replace(x=torch.cat((world.x, world.shown.float()), -1))
    generator = torch.Generator().manual_seed(9)
    fresh = torch.randn(4000, 8, generator=generator)
    shown = torch.where(torch.rand(4000, 1, generator=generator) < 0.5, 1.0, -1.0)

    def accuracy(crowd):
        em = estimator(world, crowd, settings())
        policy = learn(world, em, steps=70)
        right = (torch.cat((fresh, shown), -1) @ policy > 0) == (fresh @ world.truth > 0)
        return right.float().mean().item(), policy[8].item()

    with_model, leant = accuracy(crowd_of(world))
    without, led = accuracy(None)
    assert abs(leant) < 0.2 * abs(led) and with_model > without + 0.02


def test_gold_labels_are_believed_and_set_a_crowd_of_liars_right():
    world = draw(annotators=10, pairs=400, votes_a_pair=5, seed=3)
    lying = world._replace(votes=Votes(world.votes.annotator, -world.votes.sign))
    gold = torch.where(world.better, 1, -1) * (torch.arange(400) < 40)
    pair, delta = torch.arange(400), torch.zeros(400)
    for used in (True, False):
        em = estimator(lying, crowd_of(lying, gold), settings(features="none", gold=used))
        em.buffer.load(1e-3 * torch.randn(400))
        em.refit()
        w = em.posterior(delta, lying.votes, pair)
        right = ((w > 0.5) == world.better)[40:].float().mean()
        assert (right > 0.85) == used and (right < 0.2) == (not used)
        assert not used or torch.equal(w[:40], world.better[:40].float())


def test_a_family_that_errs_together_counts_for_less():
    """Six copies of one careless judge outvote three careful ones, unless they are said to be one family."""
    world = draw(annotators=4, pairs=800, votes_a_pair=4, seed=6)
    generator = torch.Generator().manual_seed(1)

    def said(right):
        return torch.where((torch.rand(800, generator=generator) < right) == world.better, 1, -1)

    copied = said(0.62).unsqueeze(-1).expand(-1, 6)
    careful = torch.stack([said(0.8) for _ in range(3)], -1)
    votes = Votes(torch.arange(9).expand(800, 9), torch.cat((copied, careful), -1))
    world = world._replace(votes=votes, shown=torch.zeros_like(votes.sign), eta=torch.zeros(9))
    family = torch.tensor([0] * 6 + [-1] * 3)
    found = {}
    for declared in (True, False):
        em = estimator(world, crowd_of(world, family=family), settings(families=declared))
        em.refit()
        w = em.posterior(torch.zeros(800), world.votes, torch.arange(800))
        found[declared] = ((w > 0.5) == world.better).float().mean().item()
    assert found[True] > 0.83 and found[False] < 0.7


def test_errors_that_hang_together_are_believed_less_and_said_to():
    generator = torch.Generator().manual_seed(4)
    better = torch.rand(400, generator=generator) < 0.5
    shared = torch.rand(400, 1, generator=generator)
    own = torch.rand(400, 10, generator=generator)
    draws = torch.where(torch.rand(400, 10, generator=generator) < 0.6, shared, own)
    sign = torch.where((draws < 0.68) == better.unsqueeze(-1), 1, -1)
    world = draw(annotators=10, pairs=400, votes_a_pair=10)._replace(
        better=better, votes=Votes(torch.arange(10).expand(400, 10), sign), shown=torch.zeros(400, 10)
    )
    em = estimator(world, crowd_of(world), EMSettings())
    em.refit()
    w = em.posterior(torch.zeros(400), world.votes, torch.arange(400))
    sure = torch.maximum(w, 1 - w)
    right = (w > 0.5) == better
    majority = ((sign.sum(-1) > 0) == better).float().mean()
    assert {guard for guard, _ in em.label_model.warnings} & {"dependent_errors", "shared_errors"}
    assert right.float().mean() > majority - 0.02
    assert sure.mean() < right.float().mean() + 0.08


def test_where_errors_hang_together_votes_and_policy_are_tempered_and_the_policy_beside_them_too():
    """logit w = (Δ·weight/T + Σ s a)/T, where the skills a are fitted with Δ·weight/T as the pairs' prior."""
    em, plain = (estimator(PLAIN, None, settings()) for _ in range(2))
    model, bounds = LabelModelInTraining(features="none", dependence=False), EMSettings().eta_bounds
    em.label_model = RunLabelModel(crowd_of(PLAIN), 16, slice(0, 600), model, em.collectives, bounds, "cpu")
    for estimates in (em, plain):
        estimates.buffer.load(margins(PLAIN))
        estimates.refit()
    assert em.pair_evidence is None and torch.equal(em.eta, plain.eta)
    em.label_model.now = em.label_model.now._replace(temperature=2.0, stretch=1.5)
    em.refit(), plain.refit()
    torch.testing.assert_close(em.voice.weight, plain.voice.weight / 4)
    skill = em.label_model.now.theta[:, 0]
    of_votes = (PLAIN.votes.sign * skill[PLAIN.votes.annotator]).sum(-1)
    torch.testing.assert_close(em.pair_evidence.double(), of_votes / 2, rtol=1e-5, atol=1e-6)
    half = RunLabelModel(crowd_of(PLAIN), 16, slice(0, 600), model, em.collectives, bounds, "cpu")
    half.now = em.label_model.now._replace(temperature=1.0, stretch=1.0)
    log_odds = margins(PLAIN).double() * plain.voice.weight
    torch.testing.assert_close(
        em.label_model.standard_errors(log_odds), 1.5 * half.standard_errors(log_odds / 2), rtol=1e-6, atol=1e-9
    )
    half._fit(log_odds / 2)
    torch.testing.assert_close(half.now.theta, em.label_model.now.theta, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"features": "everything"}, "features must be auto, none, or a list of slot, length"),
        ({"features": ["slot", "colour"]}, "features must be"),
        ({"features": ["auto"]}, "features must be"),
        ({"sample_votes": 0}, r"label_model\.sample_votes must be a whole number of votes"),
    ],
)
def test_settings_out_of_range_are_named(wrong, said):
    with pytest.raises(ConfigError, match=said):
        EMSettings(label_model=LabelModelInTraining(**wrong)).validate()
