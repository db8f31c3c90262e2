import pytest
import torch

from nemo_rpo.em import AnnotatorReliability, EMSettings, Votes
from nemo_rpo.errors import CheckpointError, ConfigError


def everyone(pairs: int) -> torch.Tensor:
    return torch.ones(pairs, dtype=torch.bool)


def votes_of(annotators: list[int], signs: list[float] | None = None) -> Votes:
    sign = torch.ones(len(annotators)) if signs is None else torch.tensor(signs)
    return Votes(torch.tensor(annotators).unsqueeze(-1), sign.unsqueeze(-1))


def test_one_commit_is_eq_7():
    reliability = AnnotatorReliability(3, EMSettings(alpha=0.1))
    w = torch.tensor([0.5, 1.0, 0.25])
    reliability.accumulate(w, votes_of([0, 0, 2]), everyone(3))
    reliability.commit()
    expected = torch.tensor([0.9 * 0.9 + 0.1 * 0.75, 0.9, 0.9 * 0.9 + 0.1 * 0.25], dtype=torch.float64)
    torch.testing.assert_close(reliability.eta, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(reliability.logit_eta, expected.logit().float())
    assert reliability.label_counts.tolist() == [2, 0, 1]
    assert reliability.right_sums.tolist() == [1.5, 0, 0.25]
    assert reliability.step == 1
    assert not reliability.pending.any()


def test_a_vote_for_rejected_is_right_when_chosen_is_not_better():
    reliability = AnnotatorReliability(2, EMSettings())
    reliability.accumulate(torch.tensor([0.25]), Votes(torch.tensor([[0, 1]]), torch.tensor([[1, -1]])), everyone(1))
    assert reliability.pending.tolist() == [[0.25, 0.75], [1.0, 1.0]]


def test_eta_is_fixed_inside_a_step():
    reliability = AnnotatorReliability(2, EMSettings())
    before = reliability.posterior(torch.zeros(2), votes_of([0, 1]))
    reliability.accumulate(torch.zeros(2), votes_of([0, 1]), everyone(2))
    assert torch.equal(before, reliability.posterior(torch.zeros(2), votes_of([0, 1])))


def test_a_label_from_outside_the_table_is_believed_as_at_the_start():
    reliability = AnnotatorReliability(2, EMSettings(eta_init=0.8))
    reliability.replace(torch.tensor([0.3, 0.6]))
    w = reliability.posterior(torch.zeros(3), votes_of([0, 1, 2]))
    torch.testing.assert_close(w, torch.tensor([0.3, 0.6, 0.8]))


def test_ties_and_invalid_rows_never_count():
    reliability = AnnotatorReliability(2, EMSettings())
    w = torch.tensor([0.3, float("nan"), 0.6])
    reliability.accumulate(w, votes_of([0, 0, 1], [0.0, 1.0, 1.0]), torch.tensor([True, False, True]))
    torch.testing.assert_close(reliability.pending, torch.tensor([[0.0, 0.6], [0.0, 1.0]], dtype=torch.float64))
    reliability.commit()
    assert reliability.eta[0] == 0.9


@pytest.mark.parametrize("micro_batch", [1, 2, 8, 64])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_splitting_a_global_batch_changes_no_bit(micro_batch, ranks):
    """Micro-batches in any order, ranks summed in any order: the sums are exact, so η is the same to the last bit."""
    generator = torch.Generator().manual_seed(1)
    pairs, annotators = 256, 7
    w = torch.rand(pairs, generator=generator)
    votes = Votes(
        torch.randint(annotators, (pairs, 3), generator=generator),
        torch.randint(-1, 2, (pairs, 3), generator=generator),
    )
    valid = torch.rand(pairs, generator=generator) < 0.9
    whole = AnnotatorReliability(annotators, EMSettings())
    whole.accumulate(w, votes, valid)

    shuffled = torch.randperm(pairs, generator=generator)
    shards = [AnnotatorReliability(annotators, EMSettings()) for _ in range(ranks)]
    for number, rows in enumerate(shuffled.split(micro_batch)):
        shard = shards[number % ranks]
        shard.accumulate(w[rows], Votes(votes.annotator[rows], votes.sign[rows]), valid[rows])
    total = torch.stack([shard.pending for shard in reversed(shards)]).sum(0)
    whole.commit()
    for shard in shards:
        shard.reduce(lambda pending: pending.copy_(total))
        shard.commit()
        assert torch.equal(shard.eta, whole.eta)
        assert torch.equal(shard.right_sums, whole.right_sums)


def test_the_grid_costs_no_accuracy():
    w = torch.rand(1000)
    reliability = AnnotatorReliability(1, EMSettings())
    reliability.accumulate(w, votes_of([0] * 1000), everyone(1000))
    assert reliability.pending[0, 0].item() == pytest.approx(w.double().sum().item(), abs=1000 * 2**-31)


def test_rollback_leaves_no_trace():
    reliability = AnnotatorReliability(2, EMSettings())
    reliability.accumulate(torch.rand(4), votes_of([0, 1, 1, 0]), everyone(4))
    reliability.commit()
    before = reliability.state_dict()
    reliability.accumulate(torch.tensor([0.1, float("nan")]), votes_of([0, 1]), everyone(2))
    reliability.rollback()
    after = reliability.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in ("eta", "label_counts", "right_sums"))
    assert before["step"] == after["step"] == 1


def test_clamp_and_floor_hold():
    for settings, expected in ((EMSettings(alpha=1.0), 1e-4), (EMSettings(alpha=1.0, eta_floor=0.5), 0.5)):
        reliability = AnnotatorReliability(2, settings)
        reliability.accumulate(torch.tensor([0.0, 1.0]), votes_of([0, 1]), everyone(2))
        reliability.commit()
        assert reliability.eta.tolist() == [expected, 1 - 1e-4]
        assert torch.isfinite(reliability.logit_eta).all()


@pytest.mark.parametrize("batch", [1, 5, 10, 50])
def test_alpha_per_labels_does_not_depend_on_the_batch(batch):
    """Fifty labels right with .6: the same η in one step or in fifty."""
    reliability = AnnotatorReliability(1, EMSettings(alpha=0.1, alpha_per_labels=20))
    for rows in torch.full((50,), 0.6, dtype=torch.float64).split(batch):
        reliability.accumulate(rows, votes_of([0] * len(rows)), everyone(len(rows)))
        reliability.commit()
    kept = 0.9 ** (50 / 20)
    assert reliability.eta.item() == pytest.approx(kept * 0.9 + (1 - kept) * 0.6, rel=1e-8)


def test_warm_up_believes_the_start_and_keeps_it():
    reliability = AnnotatorReliability(1, EMSettings(warmup_steps=2))
    delta = torch.tensor([-50.0, 50.0])
    for _ in range(2):
        w = reliability.posterior(delta, votes_of([0, 0]))
        torch.testing.assert_close(w, torch.tensor([0.9, 0.9]))
        reliability.accumulate(w, votes_of([0, 0]), everyone(2))
        reliability.commit()
        assert reliability.eta.item() == 0.9
    assert not reliability.label_counts.any()
    w = reliability.posterior(delta, votes_of([0, 0]))
    torch.testing.assert_close(w, torch.tensor([0.0, 1.0]))
    reliability.accumulate(w, votes_of([0, 0]), everyone(2))
    reliability.commit()
    assert reliability.eta.item() == pytest.approx(0.86)


def test_state_round_trip_is_exact():
    settings = EMSettings(alpha=0.37)
    original, restored = AnnotatorReliability(5, settings), AnnotatorReliability(5, settings)
    generator = torch.Generator().manual_seed(3)
    for step in range(6):
        if step == 3:
            restored.load_state_dict(original.state_dict())
        w, ids = torch.rand(16, generator=generator), torch.randint(5, (16,), generator=generator).tolist()
        for reliability in (original, restored) if step >= 3 else (original,):
            reliability.accumulate(w, votes_of(ids), everyone(16))
            reliability.commit()
    mine, theirs = original.state_dict(), restored.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in ("eta", "label_counts", "right_sums"))
    assert mine["step"] == theirs["step"] == 6
    assert torch.equal(original.logit_eta, restored.logit_eta)


def test_state_is_a_copy():
    reliability = AnnotatorReliability(1, EMSettings())
    saved = reliability.state_dict()
    reliability.accumulate(torch.zeros(1), votes_of([0]), everyone(1))
    reliability.commit()
    assert saved["eta"].item() == 0.9 and saved["label_counts"].item() == 0


def test_state_inside_a_step_is_refused():
    reliability = AnnotatorReliability(1, EMSettings())
    reliability.accumulate(torch.rand(1), votes_of([0]), everyone(1))
    with pytest.raises(RuntimeError, match="commit or roll back"):
        reliability.state_dict()


def test_state_of_other_annotators_is_refused():
    with pytest.raises(CheckpointError, match="knows 2 annotators, the data 3"):
        AnnotatorReliability(3, EMSettings()).load_state_dict(AnnotatorReliability(2, EMSettings()).state_dict())


def test_no_annotator_is_refused():
    with pytest.raises(ConfigError, match="at least one annotator"):
        AnnotatorReliability(0, EMSettings())


def test_replace_takes_a_sweeps_result_within_the_clamp():
    reliability = AnnotatorReliability(2, EMSettings())
    reliability.replace(torch.tensor([1.0, 0.3]))
    torch.testing.assert_close(reliability.eta, torch.tensor([1 - 1e-4, 0.3], dtype=torch.float64), rtol=1e-7, atol=0)
    torch.testing.assert_close(reliability.posterior(torch.zeros(1), votes_of([1])), torch.tensor([0.3]))
