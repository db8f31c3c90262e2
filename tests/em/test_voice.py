import math

import pytest
import torch

from nemo_rpo.em import BufferedReliability, EMSettings, MarginBuffer, Votes, build_estimator, estimate, posterior
from nemo_rpo.em.fit.standard_error import standard_errors
from nemo_rpo.em.label_model import FlatVotes, VoteColumns
from nemo_rpo.em.label_model.of_run import training_crowd as run_crowd
from nemo_rpo.em.voice import Voice

from .worlds import Crowd, make_crowd

ALL = torch.ones(64, dtype=torch.bool)


def after_training(crowd: Crowd, delta: torch.Tensor, annotators: int) -> BufferedReliability:
    """An estimator that has seen every margin once, 64 pairs a step."""
    em = build_estimator(EMSettings(), annotators, len(delta), lambda block: crowd.votes)
    for rows in torch.arange(len(delta)).split(64):
        em.observe(rows, delta[rows], torch.ones(len(rows), dtype=torch.bool))
        em.exchange(lambda own: own)
        em.commit()
    em.settle()
    return em


def right(w: torch.Tensor, crowd: Crowd) -> float:
    return ((w > 0.5) == crowd.better).double().mean().item()


def test_a_policy_that_knows_nothing_has_no_voice():
    """Confident margins that know nothing of the pairs, as of a small policy at too high a rate: the labels are those
    of the EM without a model, and not worse.
    """
    crowd = make_crowd(annotators=40, labels=6000, votes_per_pair=4, population=(8.0, 2.0), seed=3)
    delta = 4 * torch.randn(len(crowd.delta), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    em = after_training(crowd, delta, 40)
    assert em.voice.weight == 0 and em.estimate.temperature.no_better_than_chance
    w = em.posterior(delta, crowd.votes)
    torch.testing.assert_close(w, posterior(torch.zeros_like(delta), crowd.votes, em.logit_eta))
    without = estimate(torch.zeros_like(delta), crowd.votes, torch.full((40,), 0.9, dtype=torch.float64), EMSettings())
    assert right(w, crowd) >= right(posterior(torch.zeros_like(delta), crowd.votes, without.eta.logit()), crowd)
    believed = right(posterior(delta, crowd.votes, em.logit_eta), crowd)
    assert believed < right(w, crowd) - 0.05, "the margins would have done harm"


def test_a_policy_that_knows_something_weighs_what_it_is_worth():
    crowd = make_crowd(annotators=40, labels=6000, votes_per_pair=4, population=(8.0, 2.0), seed=4)
    em = after_training(crowd, 3 * crowd.delta, 40)
    assert em.voice.weight.item() == pytest.approx(1 / 3, rel=0.25)
    assert em.voice.temperature() == pytest.approx(3, rel=0.25)


def test_one_annotator_stays_at_his_start_while_nothing_tells():
    """Large margins that are right half of the time: today's K = 1 at 40 % flips."""
    crowd = make_crowd(annotators=1, labels=1500, votes_per_pair=1, population=(600.0, 400.0), seed=5)
    delta = 5 * torch.randn(1500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    em = after_training(crowd, delta, 1)
    assert em.eta.item() == pytest.approx(0.9) and em.voice.weight == 0 and em.findings() is None


def test_one_annotator_is_not_turned_round():
    crowd = make_crowd(annotators=1, labels=3000, votes_per_pair=1, population=(800.0, 200.0), seed=6)
    em = after_training(crowd, -crowd.delta, 1)
    assert em.eta.item() >= 0.5
    votes = Votes.single(torch.zeros(2, dtype=torch.long))
    q, _ = em.bounded(votes)
    torch.testing.assert_close(q, torch.tensor([0.9, 0.9]))


def test_margins_are_brought_to_a_mean_size():
    voice = Voice(tau=2.0)
    assert voice.sharpness() == 0.5 and voice(torch.tensor([3.0]), torch.tensor([True])) == 1.5
    voice.hear(torch.full((64,), 0.1), ALL)
    assert voice.sharpness() == 0.5, "small margins are left as they are"
    for _ in range(200):
        voice.hear(torch.full((64,), 100.0), ALL)
    assert 0.02 < voice.sharpness() < 0.05
    before = voice.sharpness()
    voice.hear(torch.full((64,), math.nan), ~ALL)
    assert voice.sharpness() == before, "a step without pairs says nothing"


def heard(agree: float, size: float = 20.0, steps: int = 200) -> Voice:
    """A voice that has heard margins of one size, of which a share agrees with the labels."""
    voice = Voice(tau=1.0)
    sign = torch.where(torch.arange(100) < 100 * agree, 1.0, -1.0)
    for _ in range(steps):
        voice.hear(size * sign, torch.ones(100, dtype=torch.bool))
    return voice


def test_of_one_annotator_margins_are_let_grow_by_what_they_foretell():
    """At 40 % flips even a perfect policy foretells no more than .6 of the labels."""
    size = {agree: 20 * heard(agree).sharpness(alone=True).item() for agree in (0.4, 0.5, 0.6, 0.7, 0.9)}
    assert size[0.4] == size[0.5] == pytest.approx(0.05)
    assert size[0.6] == pytest.approx(1.0, rel=1e-3) and size[0.7] == pytest.approx(2.0, rel=1e-3)
    assert size[0.9] == pytest.approx(3.0, rel=1e-3)
    assert 20 * heard(0.6).sharpness() == pytest.approx(3.0, rel=1e-3), "several annotators: their votes tell"


def test_a_voice_of_an_earlier_version_has_heard_no_agreement():
    voice = Voice(tau=1.0)
    voice.load(torch.tensor([0.5, 4.0, 2.0], dtype=torch.float64))
    assert voice.weight == 0.5 and voice.sharpness() == 1.0
    voice.hear(torch.full((64,), 2.0), ALL)
    assert voice.sharpness(alone=True) == 1.0


def test_a_policy_that_learnt_length_alone_gets_no_voice():
    """Half of the annotators follow length seven times in ten, and the policy's margins are length alone: what they
    foretell is no truth that the other half shares. Its margins speak neither in the E-step nor through the
    reliabilities; where lengths are known, they are a leaning of those who follow them.
    """
    annotators, pairs = 20, 600
    generator = torch.Generator().manual_seed(11)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    eta = torch.sigmoid(1.5 + 0.6 * torch.randn(annotators, generator=generator, dtype=torch.float64))
    annotator = uniform(pairs, annotators).argsort(-1)[:, :7]
    better = uniform(pairs, 1) < 0.5
    ratio = torch.randn(pairs, 1, generator=generator, dtype=torch.float64)
    own = torch.where((uniform(pairs, 7) < eta[annotator]) == better, 1.0, -1.0)
    follows = (annotator < annotators // 2) & (uniform(pairs, 7) < 0.7)
    votes = Votes(annotator, torch.where(follows, ratio.sign(), own))
    crowd = Crowd(4 * torch.tanh(2 * ratio[:, 0]), votes, eta, better[:, 0])
    lengths = torch.cat((100 * ratio.exp(), torch.full_like(ratio, 100.0)), -1)
    known = run_crowd.Crowd(FlatVotes.of(votes), VoteColumns(lengths=lengths))
    without = estimate(torch.zeros(pairs).double(), votes, torch.full((annotators,), 0.9).double(), EMSettings())
    alone = right(posterior(torch.zeros(pairs), votes, without.eta.logit()), crowd)
    for crowd_of, least in ((None, alone), (lambda: known, 0.8)):
        em = build_estimator(EMSettings(), annotators, pairs, lambda _: votes, crowd_of=crowd_of)
        for rows in torch.arange(pairs).split(64):
            em.observe(rows, crowd.delta[rows], torch.ones(len(rows), dtype=torch.bool))
            em.exchange(lambda rows: rows)
            em.commit()
        em.settle()
        assert em.voice.weight == 0
        assert right(em.posterior(crowd.delta, votes, torch.arange(pairs)), crowd) >= least


def test_its_state_goes_on_bit_for_bit():
    crowd = make_crowd(annotators=10, labels=640, votes_per_pair=1, population=(8.0, 2.0), seed=7)
    em = after_training(crowd, crowd.delta, 10)
    other = BufferedReliability(10, EMSettings(), MarginBuffer(640), crowd.votes)
    other.load_state_dict(em.state_dict())
    assert torch.equal(em.voice.state(), other.voice.state()) and em.voice.size[1] > 1


@pytest.mark.parametrize("annotators", [1, 8])
def test_intervals_cover_what_they_should(annotators):
    """With the temperature fitted, errors that take it as known are too small for one annotator."""
    inside, narrow = [], []
    for seed in range(12):
        crowd = make_crowd(annotators, 2500, 1, (80.0, 20.0), seed=100 + seed)
        found = estimate(
            3 * crowd.delta, crowd.votes, torch.full((annotators,), 0.9, dtype=torch.float64), EMSettings()
        )
        fitted = EMSettings(prior=found.prior, link_tau=found.temperature.value)
        errors, known = (
            standard_errors(3 * crowd.delta, crowd.votes, found.eta, fitted, scale_fitted=unknown)
            for unknown in (True, False)
        )
        inside.append(((found.eta - crowd.eta).abs() < 1.96 * errors).double())
        narrow.append((known / errors).mean().item())
    assert torch.cat(inside).mean() >= 0.85
    assert max(narrow) < 1 and (annotators > 1 or min(narrow) < 0.8)


def test_what_a_trained_policy_repeats_counts_no_more_than_what_it_first_said():
    """In a second pass margins are twice as large, because each pair was trained on with its own votes."""
    crowd = make_crowd(annotators=40, labels=6000, votes_per_pair=4, population=(8.0, 2.0), seed=7)
    em = after_training(crowd, crowd.delta, 40)
    assert em.voice.trained().item() == pytest.approx(1.0, rel=0.05), "all margins have one size so far"
    rng = torch.Generator().manual_seed(2)
    for _ in range(100):
        rows = torch.randint(len(crowd.delta), (64,), generator=rng)
        em.observe(rows, 2 * crowd.delta[rows], ALL)
        em.exchange(lambda own: own)
        em.commit()
    assert em.voice.trained().item() == pytest.approx(0.5, rel=0.1)
    several, one = crowd.votes, Votes(crowd.votes.annotator[:, :1], crowd.votes.sign[:, :1])
    heard = {
        name: em.posterior(crowd.delta, votes).logit() - em.evidence(votes, dtype=torch.float64)
        for name, votes in (("several", several), ("one", one))
    }
    torch.testing.assert_close(heard["one"], crowd.delta * em.voice.weight)
    torch.testing.assert_close(heard["several"], heard["one"] * em.voice.trained())


def test_in_the_first_pass_a_growing_margin_counts_in_full():
    voice, several = Voice(tau=1.0, pairs=640), torch.tensor([True, False])
    for step in range(9):
        voice.hear(torch.full((64,), 1.0 + step), ALL)
        voice.set_weight(0.5, torch.tensor(1.0))
        assert voice(torch.ones(2), several).tolist() == [0.5, 0.5]
    voice.hear(torch.full((64,), 10.0), ALL)
    later = voice(torch.ones(2), several)
    assert later[0] < 0.2 and later[1] == 0.5
    again = Voice(tau=1.0, pairs=640)
    again.load(voice.state())
    assert torch.equal(again(torch.ones(2), several), later)
