import math

import pytest
import torch

from nemo_rpo.em import EMSettings, Evidence, Votes, evidence_of, guards, warn_all

from .worlds import make_world


def test_healthy_estimates_raise_no_warning():
    world = make_world([0.95, 0.8, 0.7], pairs=3000)
    eta, counts = torch.tensor([0.94, 0.81, 0.72]), torch.tensor([1000.0, 1000.0, 1000.0])
    evidence = evidence_of(world.delta, world.votes, EMSettings())
    assert evidence.disagreement > 1.1 and evidence.undecided > 0.8
    assert warn_all(eta, counts, 0.9, evidence) == []


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
    unknown, known = torch.full((3,), float("nan")), torch.full((3,), 0.02)
    assert "2 of 2 annotators" in guards.stuck_at_start(torch.tensor([0.9, 0.905, 0.4]), counts, 0.9, unknown)
    assert guards.stuck_at_start(torch.tensor([0.9, 0.7, 0.9]), counts, 0.9, unknown) is None
    assert guards.stuck_at_start(torch.tensor([0.9, 0.9]), torch.tensor([5.0, 5.0]), 0.9, unknown[:2]) is None
    # An annotator who is as reliable as the start says, and known to be, is an estimate like any other.
    assert guards.stuck_at_start(torch.tensor([0.9, 0.905, 0.4]), counts, 0.9, known) is None


def test_overconfident_margins():
    """E[e^{-D}] ≤ 1: margins of memorised labels; a vote for rejected counts with its own side."""
    votes = Votes(torch.zeros(3, 1, dtype=torch.long), torch.tensor([[1], [-1], [0]]))

    def said(delta: list[float], votes: Votes = votes) -> str | None:
        return guards.overconfident_margins(evidence_of(torch.tensor(delta), votes, EMSettings()))

    assert "reliabilities tend to 1" in said([3.0, -2.0, -9.0])
    assert said([0.02, 0.01, 0.0]) is None  # margins this small leave the mean at 1, give or take its error
    assert said([3.0, 2.0, 0.0]) is None
    assert said([3.0, 2.0, 0.0], Votes(votes.annotator, torch.zeros(3, 1))) is None


def test_evidence_is_of_all_ranks_and_in_units_of_tau():
    delta, votes = (
        torch.tensor([1.0, -2.0, 0.5]),
        Votes(torch.zeros(3, 1, dtype=torch.long), torch.tensor([[1], [1], [0]])),
    )
    settings = EMSettings(link_tau=2.0)
    found = evidence_of(delta, votes, settings, all_reduce=lambda sums: sums.mul_(2))
    assert found.disagreement == pytest.approx((math.exp(-0.5) + math.exp(1.0)) / 2)
    assert found.undecided == pytest.approx(1.0)


def test_certain_annotators():
    counts = torch.tensor([95.0, 5.0])
    assert "gave 95% of the labels" in guards.certain_annotators(torch.tensor([0.999, 0.6]), counts)
    assert guards.certain_annotators(torch.tensor([0.98, 0.999]), counts) is None


def test_saturated_posteriors():
    assert "only 2.0% of the margins" in guards.saturated_posteriors(Evidence(2.0, 0.1, 0.02))
    assert guards.saturated_posteriors(Evidence(2.0, 0.1, 0.1)) is None
    assert guards.saturated_posteriors(Evidence(2.0, 0.1, float("nan"))) is None


def test_all_that_apply_are_said_most_serious_first():
    found = warn_all(torch.tensor([0.3]), torch.tensor([50.0]), 0.3, Evidence(2.0, 0.1, 0.0))
    assert [guard for guard, _ in found] == ["lone_annotator_below_half", "stuck_at_start", "saturated_posteriors"]
    assert found[0].text.startswith("the only annotator")
