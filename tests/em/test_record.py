"""The record beside an estimator: what it keeps, whose it is, and that the estimator does not notice it."""

import pytest
import torch

from nemo_rpo.em import AnnotatorReliability, EMSettings, PairRecord, RecordedReliability, Votes
from nemo_rpo.em.collectives import Collectives
from nemo_rpo.em.record import Trajectory

from .ranks import Ranks

NAN = float("nan")
ONES = torch.ones(4, dtype=torch.bool)
VOTES = Votes.single(torch.tensor([0, 1, 0, 1]))


def recorded(pairs: int = 6, rank: int = 0, world_size: int = 1, collectives: Collectives | None = None):
    return RecordedReliability(AnnotatorReliability(2, EMSettings()), PairRecord(pairs, rank, world_size), collectives)


def step(em, pair: list[int], delta: list[float], valid=ONES, gather=lambda rows: rows) -> torch.Tensor:
    delta = torch.tensor(delta)
    w = em.posterior(delta, VOTES)
    for half in (slice(0, 2), slice(2, 4)):  # two micro-batches
        em.accumulate(w[half], Votes(VOTES.annotator[half], VOTES.sign[half]), valid[half])
        em.observe(torch.tensor(pair)[half], delta[half], valid[half])
    em.exchange(gather)
    em.commit()
    return w


def test_first_and_last_sight():
    em = recorded()
    first = step(em, [3, 0, 5, 1], [0.5, -1.0, 2.0, 0.0])
    second = step(em, [0, 3, 2, -1], [4.0, 3.0, NAN, 9.0], torch.tensor([True, False, True, False]))
    seen = em.seen()
    torch.testing.assert_close(
        seen[:, 0], torch.tensor([-1.0, 0.0, NAN, 0.5, NAN, 2.0]), equal_nan=True, rtol=0, atol=0
    )
    assert seen[3, 1] == first[0] and seen[0, 1] == first[1] and second[0] != first[1]
    # Neither the invalid row 3 nor the NaN of row 2 was seen.
    torch.testing.assert_close(seen[:, 2], torch.tensor([4.0, 0.0, NAN, 0.5, NAN, 2.0]), equal_nan=True, rtol=0, atol=0)
    em.pairs.see_again(torch.arange(6.0))
    assert em.seen()[:, 2].tolist() == [0, 1, 2, 3, 4, 5] and em.seen()[3, 0] == 0.5
    em.pairs.forget()
    assert em.seen().isnan().all()


def test_a_skipped_step_leaves_no_trace():
    em = recorded()
    delta = torch.ones(4)
    em.accumulate(em.posterior(delta, VOTES), VOTES, ONES)
    em.observe(torch.arange(4), delta, ONES)
    em.rollback()
    em.exchange(lambda rows: rows)
    em.rollback()
    assert em.seen().isnan().all() and em.trajectory.steps == [] and em.step == 0


def test_the_estimator_does_not_notice():
    plain, em = AnnotatorReliability(2, EMSettings()), recorded()
    for number in range(3):
        delta = [0.5 * number, -1.0, 2.0, 0.0]
        step(plain, [0, 1, 2, 3], delta)
        step(em, [0, 1, 2, 3], delta)
    assert torch.equal(plain.eta, em.eta) and plain.step == em.step == 3
    state = em.shared_state()
    assert all(torch.equal(state[name], value) for name, value in plain.shared_state().items())


def copied(em: RecordedReliability) -> tuple[dict, dict]:
    """What a checkpoint keeps: what every rank has, and what one rank has of all pairs."""
    return em.shared_state(), {name: buffer.margins.clone() for name, buffer in em.blocks().items()}


def restore(em: RecordedReliability, state: tuple[dict, dict]) -> None:
    shared, pairs = state
    em.load_shared_state(shared)
    for name, buffer in em.blocks().items():
        buffer.load(pairs[name])


def test_state_goes_on_where_it_stopped_on_any_number_of_ranks():
    alone = recorded()
    step(alone, [3, 0, 5, 1], [0.5, -1.0, 2.0, 0.0])
    state = copied(alone)
    step(alone, [2, 4, 0, 3], [1.0, 2.0, 3.0, 4.0])

    ranks = Ranks(3)

    def run(rank: int) -> tuple[torch.Tensor, list[int]]:
        em = recorded(rank=rank, world_size=3, collectives=ranks.collectives(rank))
        restore(em, state)
        assert all(len(buffer.margins) == 2 for buffer in em.blocks().values())  # of 6: bytes over the ranks
        step(em, [2, 4, 0, 3], [1.0, 2.0, 3.0, 4.0])  # every rank is given the whole batch's rows
        return em.seen(), em.trajectory.steps

    for seen, steps in ranks.run(run):
        torch.testing.assert_close(seen, alone.seen(), equal_nan=True, rtol=0, atol=0)
        assert steps == alone.trajectory.steps == [1, 2]


def test_a_state_without_a_record_is_none():
    em, fresh = recorded(), recorded()
    step(em, [0, 1, 2, 3], [1.0, 1.0, 1.0, 1.0])
    fresh.load_shared_state(em.em.shared_state())
    assert fresh.seen().isnan().all() and fresh.step == 1 and fresh.trajectory.steps == []
    assert torch.equal(fresh.eta, em.eta)


@pytest.mark.parametrize("total", [5, 128, 129, 1000, 100_000])
def test_the_trajectory_is_even_and_bounded(total):
    trajectory = Trajectory(2)
    for number in range(1, total + 1):
        trajectory.pass_by(number, torch.full((2,), float(number)))
    gaps = {after - before for before, after in zip(trajectory.steps, trajectory.steps[1:], strict=False)}
    assert len(gaps) == 1 and trajectory.steps[0] == 1
    assert min(total, 64) <= len(trajectory.steps) <= 128 and total - trajectory.steps[-1] < max(gaps)
    assert [eta[0].item() for eta in trajectory.eta] == trajectory.steps


def test_a_sweep_takes_the_place_of_its_step():
    em = recorded()
    step(em, [0, 1, 2, 3], [1.0, 1.0, 1.0, 1.0])
    em.replace(torch.tensor([0.3, 0.4]))
    assert em.trajectory.steps == [1]
    torch.testing.assert_close(em.trajectory.eta[0], torch.tensor([0.3, 0.4]))


def test_who_joins_has_a_way_from_then_on():
    trajectory, longer = Trajectory(2), Trajectory(3)
    trajectory.pass_by(1, torch.tensor([0.3, 0.4]))
    longer.load(trajectory.state(), torch.zeros(3))
    torch.testing.assert_close(longer.eta[0], torch.tensor([0.3, 0.4, NAN]), equal_nan=True)


def test_a_crowd_of_millions_has_few_points():
    assert Trajectory(4_000_000).capacity == 8 and Trajectory(3_815).capacity == 128
