"""Algorithm 1 with a linear policy: what the EM can and cannot tell apart while the policy is being learnt."""

import pytest
import torch

from nemo_rpo.em import AnnotatorReliability, EMSettings, Votes


def train(flip_rates: list[float], pairs: int = 4000, features: int = 8, steps: int = 300) -> tuple[list[float], float]:
    """Trains a cold linear policy; returns the estimated flip rates and the accuracy on fresh clean pairs."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(features, generator=generator)
    truth *= 4 / truth.norm()
    x = torch.randn(pairs, features, generator=generator)
    first_is_better = torch.rand(pairs, generator=generator) < torch.sigmoid(x @ truth)
    annotator = torch.arange(pairs) % len(flip_rates)
    flipped = torch.rand(pairs, generator=generator) < torch.tensor(flip_rates)[annotator]
    x = torch.where((first_is_better ^ flipped).unsqueeze(-1), x, -x)

    policy = torch.zeros(features)
    reliability = AnnotatorReliability(len(flip_rates), EMSettings())
    votes, valid = Votes.single(annotator), torch.ones(pairs, dtype=torch.bool)
    for _ in range(steps):
        delta = x @ policy
        w = reliability.posterior(delta, votes)
        policy = policy - 0.5 * ((torch.sigmoid(delta) - w).unsqueeze(-1) * x).mean(0)
        reliability.accumulate(w, votes, valid)
        reliability.commit()
    fresh = torch.randn(2000, features, generator=generator)
    accuracy = ((fresh @ policy > 0) == (fresh @ truth > 0)).float().mean().item()
    return (1 - reliability.eta).tolist(), accuracy


@pytest.mark.parametrize("flip_rate", [0.6, 0.8])
def test_a_single_annotator_worse_than_a_coin_flips_the_world(flip_rate):
    (estimated,), accuracy = train([flip_rate])
    assert accuracy < 0.1
    assert estimated < 0.5


def test_a_cleaner_annotator_beside_the_adversary_sets_the_world_right():
    (adversary, honest), accuracy = train([0.6, 0.2])
    assert accuracy > 0.95
    assert adversary > 0.5 > honest
