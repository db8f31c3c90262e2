"""What is known of annotators beforehand counts as labels whose truth is known, in every estimator; and frozen η."""

from __future__ import annotations

import pytest
import torch

from nemo_rpo.em import EMSettings, Votes, estimate, full_batch_em, standard_errors
from nemo_rpo.em.belief import Belief, answers_behind
from nemo_rpo.em.label_model import VoteFeatures
from nemo_rpo.em.label_model.coded_votes import vote_table
from nemo_rpo.em.label_model.coefficients import annotator_sums

from .ranks import Ranks
from .run_worlds import crowd_of, draw, estimator, learn
from .worlds import make_crowd, make_world

ETA = torch.linspace(0.3, 0.95, 24).tolist()
SETTINGS = EMSettings(sweep_tolerance=1e-12)
SURE = 1e3  # a margin that leaves no doubt


def half(seed: int, eta: list[float] = ETA, pairs: int = 2400) -> tuple[torch.Tensor, Votes]:
    """Votes whose truths are known."""
    world = make_world(eta, pairs, seed=seed)
    better = world.right == (world.votes.sign > 0)
    return torch.where(better[:, 0], SURE, -SURE).double(), world.votes


def test_what_is_carried_whole_is_as_if_the_earlier_labels_were_there() -> None:
    (delta, votes), (later, more) = half(1), half(2)
    start = torch.full((len(ETA),), 0.9, dtype=torch.float64)
    first = full_batch_em(delta, votes, start, SETTINGS)
    error = standard_errors(delta, votes, first.eta, SETTINGS)
    known = answers_behind(first.eta, error, first.counts, SETTINGS.prior)
    realised = first.right_sums / first.counts
    assert (known.sum(0) / first.counts - 1).abs().max() < 0.2
    assert (known[0] / known.sum(0) - realised).abs().max() < 0.02
    found = full_batch_em(later, more, first.eta, SETTINGS, known=known)
    together = torch.cat((delta, later)), Votes.all_of((votes, more))
    expected = full_batch_em(*together, start, SETTINGS)
    torch.testing.assert_close(found.eta, expected.eta, rtol=0, atol=5e-3)
    errors = (
        standard_errors(later, more, found.eta, SETTINGS, known=known),
        standard_errors(*together, expected.eta, SETTINGS),
    )
    torch.testing.assert_close(*errors, rtol=0.05, atol=0)


@pytest.mark.parametrize("annotators", [3, 30])
def test_less_is_behind_what_is_less_known(annotators: int) -> None:
    """Never more than the labels; nothing behind an error that is not known, or is the population's own spread."""
    eta = torch.linspace(0.6, 0.9, annotators, dtype=torch.float64)
    many = torch.full_like(eta, 1000.0)
    errors = (0.02, 0.04, 0.08)
    surely, less, hardly = (
        answers_behind(eta, torch.full_like(eta, error), many, (3.0, 1.0)).sum(0) for error in errors
    )
    assert (surely > less).all() and (less > hardly).all() and (hardly >= 0).all()
    few = answers_behind(eta, torch.full_like(eta, 0.01), torch.full_like(eta, 5.0), (3.0, 1.0))
    torch.testing.assert_close(few.sum(0), torch.full_like(eta, 5.0))
    unknown = torch.full_like(eta, 0.04)
    unknown[0] = torch.nan
    assert answers_behind(eta, unknown, many, (3.0, 1.0))[:, 0].tolist() == [0.0, 0.0]


def test_the_full_fit_counts_it_beside_the_labels_however_ranks_share_them() -> None:
    crowd = make_crowd(annotators=40, labels=1200, votes_per_pair=1, population=(8.0, 2.0), seed=3)
    settings, start = EMSettings(), torch.full((40,), 0.9, dtype=torch.float64)
    known = 1e7 * torch.stack((crowd.eta.double(), 1 - crowd.eta.double()))
    found = estimate(crowd.delta, crowd.votes, start, settings, known=known)
    torch.testing.assert_close(found.eta, crowd.eta.double().clamp(*settings.eta_bounds), rtol=0, atol=1e-4)
    without = estimate(crowd.delta, crowd.votes, start, settings)
    assert (without.eta - crowd.eta).abs().mean() > 0.02
    ranks, cut = Ranks(2), 700

    def of_rank(rank: int) -> torch.Tensor:
        own = slice(0, cut) if rank == 0 else slice(cut, None)
        votes = Votes(crowd.votes.annotator[own], crowd.votes.sign[own])
        return estimate(crowd.delta[own], votes, start, settings, ranks.collectives(rank), known).eta

    for eta in ranks.run(of_rank):
        torch.testing.assert_close(eta, found.eta, rtol=0, atol=1e-9)


def test_the_label_model_takes_it_for_votes_on_pairs_of_known_truth() -> None:
    delta, votes = half(4, [0.9, 0.8, 0.6, 0.3], pairs=60)
    slot = torch.randn(votes.sign.shape, generator=torch.Generator().manual_seed(0))
    table = vote_table(votes, 4, VoteFeatures(leaning={"slot": slot}))
    theta, w = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64), (delta > 0).double()
    known = torch.tensor([[5.0, 0.0, 2.0, 1.0], [1.0, 3.0, 0.0, 1.0]], dtype=torch.float64)
    found = annotator_sums(table._replace(known=known), theta, w, louis=True)
    annotator = torch.cat([torch.arange(4).repeat_interleave(of.long()) for of in known]).unsqueeze(1)
    sign = torch.ones(len(annotator), 1)
    sign[int(known[0].sum()) :] = -1
    features = VoteFeatures(leaning={"slot": torch.cat((slot, torch.zeros_like(sign)))})
    table = vote_table(Votes.all_of((votes, Votes(annotator, sign))), 4, features)
    expected = annotator_sums(table, theta, torch.cat((w, torch.ones(len(sign), dtype=torch.float64))), louis=True)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


WORLD = draw(annotators=12, pairs=500, votes_a_pair=3, seed=5)


@pytest.mark.parametrize("gold", [False, True], ids=["votes alone", "gold labels"])
def test_both_models_of_a_run_keep_to_what_is_known_well(gold: bool) -> None:
    """Where gold labels are in the data the label model's skills are η: they are held as the reliabilities are."""
    start = torch.linspace(0.3, 0.9, 12, dtype=torch.float64)
    belief = Belief(start, 1e6 * torch.stack((start, 1 - start)), torch.full_like(start, 0.01))
    answers = torch.where(torch.arange(500) < 40, torch.where(WORLD.better, 1, -1), 0) if gold else None
    em = estimator(WORLD, crowd_of(WORLD, answers), EMSettings(), belief=belief)
    assert torch.equal(em.eta, start)
    learn(WORLD, em, steps=40)
    assert em.estimate is not None and bool(em.coefficients) == gold
    skill = torch.sigmoid(em.label_model.now.theta[:, 0]) if gold else em.eta
    torch.testing.assert_close(skill, start, rtol=0, atol=2e-3)


@pytest.mark.parametrize("kind", ["buffer", "ema"])
def test_frozen_reliabilities_stay_to_the_bit_and_the_policy_still_gets_its_weight(kind: str) -> None:
    belief = Belief.none(12, 0.9)._replace(start=WORLD.eta.clamp(0.01, 0.99))
    settings = EMSettings(estimator=kind, freeze_eta=True)
    answers = torch.where(torch.arange(500) < 40, torch.where(WORLD.better, 1, -1), 0)
    em = estimator(WORLD, crowd_of(WORLD, answers), settings, belief=belief)
    learn(WORLD, em, steps=40)
    margin = WORLD.x @ WORLD.truth
    fitted = em.fit(margin, WORLD.votes)
    assert torch.equal(em.eta, belief.start) and torch.equal(fitted.result.eta, belief.start)
    assert fitted.result.converged and fitted.result.iterations == 0 and fitted.result.counts.sum() == 1500
    if kind == "buffer":
        assert em.label_model is None and em.estimate.sweep is not None
        assert fitted.settings.link_tau == pytest.approx(1.0, abs=0.25)  # margins of the truth are calibrated
        pairs = torch.arange(500)
        w = em.posterior(torch.zeros(500), WORLD.votes, pairs)
        assert torch.equal(w[:40] > 0.5, WORLD.better[:40]) and (w[:40] - 0.5).abs().min() == 0.5
        loaded = estimator(WORLD, crowd_of(WORLD, answers), settings, belief=belief)
        loaded.load_state_dict(em.state_dict())
        assert torch.equal(*(of.posterior(margin, WORLD.votes, pairs) for of in (loaded, em)))
