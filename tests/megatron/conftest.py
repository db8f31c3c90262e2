"""Shared by the engine's tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a :mod:`tiny_world`; not to be written to."""
    import tiny_world

    return tiny_world.make(tmp_path_factory.mktemp("world"))
