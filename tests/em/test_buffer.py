import pytest
import torch

from nemo_rpo.em import (
    AnnotatorReliability,
    BufferedReliability,
    BufferSettings,
    EMSettings,
    MarginBuffer,
    Votes,
    estimate,
)
from nemo_rpo.errors import CheckpointError, ConfigError

from .ranks import Ranks
from .worlds import make_crowd

NAN = float("nan")
CROWD = make_crowd(annotators=20, labels=1280, votes_per_pair=1, population=(8.0, 2.0), seed=9)
PAIRS = len(CROWD.delta)
SETTINGS = EMSettings(estimator="buffer", buffer=BufferSettings(refit_every=5))


def build(settings: EMSettings = SETTINGS, rank: int = 0, world_size: int = 1, collectives=None) -> BufferedReliability:
    buffer = MarginBuffer(PAIRS, rank, world_size)
    votes = Votes(CROWD.votes.annotator[buffer.block], CROWD.votes.sign[buffer.block])
    return BufferedReliability(20, settings, buffer, votes, collectives)


def step(reliability: BufferedReliability, number: int, size: int = 64, gather=lambda rows: rows) -> None:
    rows = torch.arange(number * size, (number + 1) * size)
    for pair in rows.split(16):
        reliability.observe(pair, CROWD.delta[pair], torch.ones(len(pair), dtype=torch.bool))
    reliability.exchange(gather)
    reliability.commit()


def test_every_rank_keeps_its_own_block():
    buffers = [MarginBuffer(7, rank, 3) for rank in range(3)]
    assert [buffer.block for buffer in buffers] == [slice(0, 3), slice(3, 6), slice(6, 7)]
    pair, delta = torch.tensor([6, 0, -1, 4, 2]), torch.tensor([6.0, 0.5, 9.0, 4.0, 2.0])
    for buffer in buffers:
        buffer.record(pair, delta, keep_first=True)
    stored = torch.cat([buffer.margins for buffer in buffers])
    torch.testing.assert_close(stored, torch.tensor([0.5, NAN, 2.0, NAN, 4.0, NAN, 6.0]), equal_nan=True)


def test_more_ranks_than_pairs():
    buffers = [MarginBuffer(2, rank, 4) for rank in range(4)]
    assert [len(buffer.margins) for buffer in buffers] == [1, 1, 0, 0]
    buffers[3].record(torch.tensor([0, 1]), torch.tensor([1.0, 2.0]), keep_first=True)


@pytest.mark.parametrize(("keep_first", "expected"), [(True, [1.0, 2.0, 5.0]), (False, [4.0, 2.0, 5.0])])
def test_prequential_margins_are_the_first(keep_first, expected):
    buffer = MarginBuffer(3)
    buffer.record(torch.tensor([0, 1]), torch.tensor([1.0, 2.0]), keep_first)
    buffer.record(torch.tensor([0, 2]), torch.tensor([4.0, 5.0]), keep_first)
    assert buffer.margins.tolist() == expected


def test_a_refit_is_the_estimate_of_what_was_seen():
    reliability = build()
    for number in range(5):
        assert reliability.estimate is None
        assert (reliability.eta == 0.9).all()
        step(reliability, number)
    seen = slice(0, 320)
    votes = Votes(CROWD.votes.annotator[seen], CROWD.votes.sign[seen])
    expected = estimate(CROWD.delta[seen].float(), votes, torch.full((20,), 0.9, dtype=torch.float64), SETTINGS)
    assert torch.equal(reliability.eta, expected.eta)
    assert reliability.label_counts.sum() == 320
    torch.testing.assert_close(reliability.logit_eta, expected.eta.logit().float())


def test_early_refits_come_at_powers_of_two():
    reliability = build(EMSettings(estimator="buffer", buffer=BufferSettings(refit_every=1000)))
    refits = []
    for number in range(20):
        before = reliability.estimate
        step(reliability, number)
        if reliability.estimate is not before:
            refits.append(reliability.step)
    assert refits == [8, 16]


def test_warm_up_gathers_margins_but_does_not_refit():
    reliability = build(EMSettings(estimator="buffer", warmup_steps=5, buffer=BufferSettings(refit_every=5)))
    for number in range(4):
        step(reliability, number)
    assert reliability.estimate is None and reliability.warming_up
    step(reliability, 4)
    assert reliability.estimate is not None and reliability.label_counts.sum() == 320


def test_invalid_and_non_finite_rows_are_not_recorded():
    reliability = build()
    delta = torch.tensor([1.0, float("nan"), float("inf"), 2.0])
    reliability.observe(torch.arange(4), delta, torch.tensor([True, True, True, False]))
    reliability.exchange(lambda rows: rows)
    reliability.commit()
    assert reliability.buffer.margins[:4].isnan().tolist() == [False, True, True, True]


def test_rollback_forgets_the_step():
    reliability = build()
    reliability.observe(torch.arange(4), torch.ones(4), torch.ones(4, dtype=torch.bool))
    reliability.rollback()
    reliability.exchange(lambda rows: rows)
    reliability.commit()
    assert reliability.buffer.margins.isnan().all()


def test_a_pair_costs_twelve_bytes_on_the_wire():
    sent = []
    reliability = build()
    reliability.observe(torch.arange(4), torch.randn(4), torch.ones(4, dtype=torch.bool))
    reliability.exchange(lambda rows: sent.append(rows) or rows)
    assert sent[0].numel() * sent[0].element_size() == 4 * 12


def test_resume_is_exact():
    unbroken, restored = build(), build()
    for number in range(7):
        step(unbroken, number)
    restored.load_state_dict(unbroken.state_dict())
    for number in range(7, 20):
        step(unbroken, number)
        step(restored, number)
    mine, theirs = unbroken.state_dict(), restored.state_dict()
    for key in ("eta", "label_counts", "right_sums"):
        assert torch.equal(mine[key], theirs[key])
    assert torch.equal(mine["margins"].view(torch.int32), theirs["margins"].view(torch.int32))
    assert mine["step"] == theirs["step"] == 20
    assert unbroken.estimate.prior == restored.estimate.prior
    assert unbroken.estimate.temperature == restored.estimate.temperature


def test_ranks_agree_and_a_checkpoint_fits_other_ranks():
    ranks = Ranks(2)

    def work(rank: int):
        collectives = ranks.collectives(rank)
        reliability = build(rank=rank, world_size=2, collectives=collectives)
        for number in range(10):
            rows = torch.arange(number * 64, (number + 1) * 64).chunk(2)[rank]
            reliability.observe(rows, CROWD.delta[rows], torch.ones(32, dtype=torch.bool))
            reliability.exchange(collectives.gather_rows)
            reliability.commit()
        return reliability

    first, second = ranks.run(work)
    alone = build()
    for number in range(10):
        step(alone, number)
    assert torch.equal(first.eta, second.eta)
    torch.testing.assert_close(first.eta, alone.eta, rtol=0, atol=1e-6)
    margins = torch.cat((first.buffer.margins, second.buffer.margins))
    torch.testing.assert_close(margins, alone.buffer.margins, equal_nan=True)

    state, same = ranks.run(lambda rank: (first, second)[rank].state_dict())
    torch.testing.assert_close(state["margins"], same["margins"], rtol=0, atol=0, equal_nan=True)
    quarter = build(rank=3, world_size=4)
    quarter.load_state_dict(state)
    torch.testing.assert_close(quarter.buffer.margins, margins[quarter.buffer.block], equal_nan=True)
    with pytest.raises(CheckpointError, match=f"margins of 5 pairs, the data {PAIRS}"):
        quarter.load_state_dict({**state, "margins": margins[:5]})


def test_state_inside_a_step_is_refused():
    reliability = build()
    reliability.observe(torch.arange(4), torch.ones(4), torch.ones(4, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="commit or roll back"):
        reliability.state_dict()


def test_the_last_steps_are_taken_in():
    reliability = build()
    for number in range(7):
        step(reliability, number)
    reliability.settle()
    late = reliability.estimate
    reliability.settle()
    assert reliability.estimate is late  # nothing has come since
    every = build(EMSettings(buffer=BufferSettings(refit_every=7)))
    for number in range(7):
        step(every, number)
    assert torch.equal(every.estimate.sweep.counts, late.sweep.counts) and late.sweep.counts.sum() > 0


def test_votes_have_to_be_those_of_the_buffer():
    with pytest.raises(ConfigError, match="votes of 3 pairs"):
        BufferedReliability(20, SETTINGS, MarginBuffer(PAIRS), Votes.single(torch.arange(3)))


def test_the_ema_ignores_margins_that_are_offered():
    reliability = AnnotatorReliability(2, EMSettings())
    reliability.observe(torch.arange(3), torch.ones(3), torch.ones(3, dtype=torch.bool))
    reliability.commit()
    assert (reliability.eta == 0.9).all()


def test_a_sweep_fits_prior_and_temperature_too():
    """Margins three times too large: the sweep of the running mean cannot see it."""
    found, fitted, scale_fitted = build().fit(3 * CROWD.delta, CROWD.votes)
    assert fitted.link_tau == pytest.approx(3, rel=0.35) and fitted.prior != SETTINGS.prior and scale_fitted
    running_mean = AnnotatorReliability(20, EMSettings(estimator="ema"))
    plain, as_set, scale_fitted = running_mean.fit(3 * CROWD.delta, CROWD.votes)
    assert as_set.link_tau == 1 and not scale_fitted
    assert (found.eta - CROWD.eta).abs().mean() < (plain.eta - CROWD.eta).abs().mean()
