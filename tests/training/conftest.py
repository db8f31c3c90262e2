from __future__ import annotations

from pathlib import Path

import pytest

from .runs import World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.write(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def unbroken(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on one rank that nothing stopped; copy it before you change it."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    world.train(out)
    return out
