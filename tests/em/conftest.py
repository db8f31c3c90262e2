import pytest

from .worlds import World, make_world


@pytest.fixture(scope="session")
def world() -> World:
    """Five annotators, one of them an adversary, three votes a pair."""
    return make_world([0.95, 0.85, 0.7, 0.55, 0.2], pairs=4000, votes_per_pair=3)
