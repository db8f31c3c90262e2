from __future__ import annotations

from pathlib import Path

import pytest

from . import worlds


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return worlds.write(tmp_path_factory.mktemp("loop_world"))


@pytest.fixture(scope="session")
def unbroken(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a loop that nothing stopped, and that was then told to go on for a round; do not change it."""
    folder = tmp_path_factory.mktemp("unbroken") / "loop"
    worlds.iterate(world, folder, anchors=worlds.anchors(world), rounds=1)
    before = worlds.written(folder / "round=001")
    worlds.iterate(world, folder, anchors=worlds.anchors(world), rounds=2)
    assert worlds.written(folder / "round=001") == before, "a longer loop has done a finished round again"
    return folder
