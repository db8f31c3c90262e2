"""Gold labels among the training pairs, where the average judge is worse than a coin."""

from benchmarks.anchors_in_training import draw, learn


def test_a_few_pairs_of_known_truth_turn_the_lie_round() -> None:
    world = draw(100)
    agreed = (world.votes.share() > 0.5) == world.better
    assert agreed.double().mean() < 0.5  # whoever believes the judges learns the opposite
    found = learn(seed=100, anchors=40)
    assert found.policy > 0.9 and found.labels > 0.75
