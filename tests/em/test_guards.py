import torch

from nemo_rpo.em import Votes, guards, warn_all

from .worlds import make_world


def test_healthy_estimates_raise_no_warning():
    world = make_world([0.95, 0.8, 0.7], pairs=3000)
    eta, counts = torch.tensor([0.94, 0.81, 0.72]), torch.tensor([1000.0, 1000.0, 1000.0])
    w = torch.linspace(0, 1, 100)
    assert warn_all(eta, counts, 0.9, world.delta, world.votes, w) == []


def test_a_lone_annotator_below_half():
    counts = torch.tensor([500.0, 0.0])
    assert "right 38% of the time" in guards.lone_annotator_below_half(torch.tensor([0.38, 0.9]), counts)
    assert guards.lone_annotator_below_half(torch.tensor([0.62, 0.9]), counts) is None
    assert guards.lone_annotator_below_half(torch.tensor([0.38, 0.9]), torch.tensor([500.0, 1.0])) is None


def test_a_flipped_population():
    eta = torch.tensor([0.2, 0.3, 0.8])
    assert "gave 60% of the labels" in guards.flipped_population(eta, torch.tensor([30.0, 30.0, 40.0]))
    assert guards.flipped_population(eta, torch.tensor([10.0, 10.0, 80.0])) is None
    assert guards.flipped_population(torch.tensor([0.2]), torch.tensor([10.0])) is None


def test_stuck_at_the_start():
    counts = torch.tensor([100.0, 100.0, 5.0])
    assert "2 of 2 annotators" in guards.stuck_at_start(torch.tensor([0.9, 0.905, 0.4]), counts, 0.9)
    assert guards.stuck_at_start(torch.tensor([0.9, 0.7, 0.9]), counts, 0.9) is None
    assert guards.stuck_at_start(torch.tensor([0.9, 0.9]), torch.tensor([5.0, 5.0]), 0.9) is None


def test_overconfident_margins():
    """E[e^{-D}] ≤ 1: margins of memorised labels; a vote for rejected counts with its own side."""
    votes = Votes(torch.zeros(3, 1, dtype=torch.long), torch.tensor([[1], [-1], [0]]))
    assert "reliabilities tend to 1" in guards.overconfident_margins(torch.tensor([3.0, -2.0, -9.0]), votes)
    assert guards.overconfident_margins(torch.tensor([3.0, 2.0, 0.0]), votes) is None
    nobody = Votes(votes.annotator, torch.zeros(3, 1))
    assert guards.overconfident_margins(torch.tensor([3.0, 2.0, 0.0]), nobody) is None


def test_certain_annotators():
    counts = torch.tensor([95.0, 5.0])
    assert "gave 95% of the labels" in guards.certain_annotators(torch.tensor([0.999, 0.6]), counts)
    assert guards.certain_annotators(torch.tensor([0.98, 0.999]), counts) is None


def test_saturated_posteriors():
    assert "raise model.rpo.link_tau" in guards.saturated_posteriors(torch.tensor([0.001] * 98 + [0.5] * 2))
    assert guards.saturated_posteriors(torch.tensor([0.001] * 90 + [0.5] * 10)) is None


def test_all_that_apply_are_said_most_serious_first():
    found = warn_all(torch.tensor([0.3]), torch.tensor([50.0]), 0.3, w=torch.zeros(10))
    assert len(found) == 3 and found[0].startswith("the only annotator")
